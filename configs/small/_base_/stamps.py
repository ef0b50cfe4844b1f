"""The generated data set "stamps" (``tools/make_stamps.py data/stamps``), for any small detector.

Photographed objects on photographs, drawn at 192 px and resized to 160 px. The backbone comes from
ImageNet and learns at a tenth of the rate. The settings are for detectors on strides 8, 16 and 32;
single-scale ones use stride 16: ``backbone.out_indices=[1]``, ``neck.in_channels=[112]``.
"""

data_root = 'data/stamps/'
metainfo = dict(
    classes=(
        'mammal',
        'bird',
        'fish',
        'insect',
        'fruit',
        'vegetable',
        'flower',
        'tool',
        'sign',
        'vehicle',
        'planet',
        'instrument',
    ),
)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(160, 160), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=train_pipeline)
)
val_dataloader = dict(dataset=dict(data_root=data_root, metainfo=metainfo, pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_{{$EVAL_SPLIT:val}}.json')
test_evaluator = val_evaluator

model = dict(
    data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3),
    backbone=dict(_delete_=True, type='EfficientNetLite'),
    neck=dict(in_channels=[40, 112, 320]),
    bbox_head=dict(num_classes=12),
)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
