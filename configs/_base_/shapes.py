# The generated set "shapes" (tools/make_shapes.py) as a data set of MMDetection. MMEngine refuses
# two base files with one key, and these keys are MMDetection's: hence one name, and configs that
# take `_base_.shapes.<key>`.
shapes_root = 'data/shapes/'
shapes_metainfo = dict(
    classes=('disc', 'square', 'triangle', 'star', 'cross', 'ring'),
    palette=[
        (220, 50, 45),
        (50, 90, 225),
        (50, 175, 70),
        (240, 205, 40),
        (190, 60, 200),
        (60, 210, 215),
    ],
)
shapes_resize = dict(type='Resize', scale=(128, 128), keep_ratio=True)
shapes = dict(
    train_dataloader=dict(
        batch_size=8,
        num_workers=1,
        dataset=dict(
            data_root=shapes_root,
            metainfo=shapes_metainfo,
            ann_file='annotations/instances_train.json',
            data_prefix=dict(img='train/'),
            filter_cfg=dict(filter_empty_gt=False),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                shapes_resize,
                dict(type='RandomFlip', prob=0.5),
                dict(type='PackDetInputs'),
            ],
        ),
    ),
    val_dataloader=dict(
        batch_size=8,
        num_workers=1,
        dataset=dict(
            data_root=shapes_root,
            metainfo=shapes_metainfo,
            ann_file='annotations/instances_val.json',
            data_prefix=dict(img='val/'),
            pipeline=[
                dict(type='LoadImageFromFile'),
                shapes_resize,
                dict(type='LoadAnnotations', with_bbox=True),
                dict(
                    type='PackDetInputs',
                    meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
                ),
            ],
        ),
    ),
    val_evaluator=dict(ann_file=shapes_root + 'annotations/instances_val.json'),
)
