"""The generated set "shapes" (``tools/make_shapes.py``), as small models see it.

Evaluation reads the split ``val``. What is chosen (a rate, a schedule, a width) is chosen on
``tune``: ``EVAL_SPLIT=tune`` in the environment of any tool.

MMEngine refuses two base files with one key, and MMDetection's configs have these: hence one name
here, and ``globals().update(_base_.shapes)`` in the configs.
"""

shapes = dict(
    custom_imports=dict(imports=['mmsmca'], allow_failed_imports=False),
    metainfo=dict(
        classes=('disc', 'square', 'triangle', 'star', 'cross', 'ring'),
        palette=[
            (220, 50, 45),
            (50, 90, 225),
            (50, 175, 70),
            (240, 205, 40),
            (190, 60, 200),
            (60, 210, 215),
        ],
    ),
    data_root='data/shapes/',
    train_pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(type='Resize', scale=(128, 128), keep_ratio=True),
        dict(type='RandomFlip', prob=0.5),
        dict(type='PackDetInputs'),
    ],
    test_pipeline=[
        dict(type='LoadImageFromFile'),
        dict(type='Resize', scale=(128, 128), keep_ratio=True),
        dict(type='LoadAnnotations', with_bbox=True),
        dict(
            type='PackDetInputs',
            meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
        ),
    ],
)
shapes['train_dataloader'] = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=shapes['data_root'],
        metainfo=shapes['metainfo'],
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=shapes['train_pipeline'],
    ),
)
shapes['val_dataloader'] = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=shapes['data_root'],
        metainfo=shapes['metainfo'],
        ann_file='annotations/instances_{{$EVAL_SPLIT:val}}.json',
        data_prefix=dict(img='{{$EVAL_SPLIT:val}}/'),
        pipeline=shapes['test_pipeline'],
    ),
)
shapes['test_dataloader'] = shapes['val_dataloader']
shapes['val_evaluator'] = dict(
    type='FastestCocoMetric',
    ann_file=shapes['data_root'] + 'annotations/instances_{{$EVAL_SPLIT:val}}.json',
)
shapes['test_evaluator'] = shapes['val_evaluator']
