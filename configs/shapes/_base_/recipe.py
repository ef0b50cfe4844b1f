# The generated set "shapes" (tools/make_shapes.py) and how small models learn it from scratch on a
# CPU in minutes. Data, schedule and hooks are here; configs that inherit it set the model.
_base_ = '../../smca/smca_r50_8xb2-50e_coco.py'

data_root = 'data/shapes/'
metainfo = dict(
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
model = dict(bbox_head=dict(num_classes=6))

train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(128, 128), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=False,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='train/'),
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='val/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator

# Nothing is pretrained: the backbone learns at the rate of the rest.
optim_wrapper = dict(optimizer=dict(lr=2.5e-4), paramwise_cfg=None)

max_epochs = 11
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[9], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=8)

# Interrupted and resumed (tools/train.py --resume), a run ends with the weights that it would have
# had, bit for bit on a CPU.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='EpochSeedHook')]
randomness = dict(seed=0)
