"""The generated set "digits" (``tools/make_digits.py data/digits``) in place of "shapes".

A second data set, on which no recipe is chosen. Configs of the head-to-head on shapes take it with
``globals().update(_base_.digits)``: recipe and sizes stay theirs. A mirrored digit is
none: no flips.
"""

_data = dict(
    data_root='data/digits/',
    metainfo=dict(
        classes=('0', '1', '2', '3', '4', '5', '6', '7', '8', '9'),
        palette=[
            (220, 50, 45),
            (50, 90, 225),
            (50, 175, 70),
            (240, 205, 40),
            (190, 60, 200),
            (60, 210, 215),
            (245, 130, 48),
            (145, 30, 180),
            (128, 128, 0),
            (0, 128, 128),
        ],
    ),
)
_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='PackDetInputs'),
]
_evaluator = dict(ann_file=_data['data_root'] + 'annotations/instances_{{$EVAL_SPLIT:val}}.json')

digits = dict(
    **_data,
    model=dict(bbox_head=dict(num_classes=10)),
    train_pipeline=_train_pipeline,
    train_dataloader=dict(dataset=dict(**_data, pipeline=_train_pipeline)),
    val_dataloader=dict(dataset=_data),
    test_dataloader=dict(dataset=_data),
    val_evaluator=_evaluator,
    test_evaluator=_evaluator,
)
del _data, _train_pipeline, _evaluator
