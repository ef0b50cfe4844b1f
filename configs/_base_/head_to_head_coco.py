"""The common recipe on COCO for each detector of configs/studies/head_to_head.py."""

custom_imports = dict(imports=['mmsmca'], allow_failed_imports=False)
runner_type = 'CheckedRunner'

# DETR's augmentation; the detectors' own differs at most in the size limit of one resize.
coco_scales = [(side, 1333) for side in range(480, 801, 32)]
train_pipeline = [
    dict(type='LoadImageFromFile', backend_args=None),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomFlip', prob=0.5),
    dict(
        type='RandomChoice',
        transforms=[
            [dict(type='RandomChoiceResize', scales=coco_scales, keep_ratio=True)],
            [
                dict(
                    type='RandomChoiceResize',
                    scales=[(400, 1333), (500, 1333), (600, 1333)],
                    keep_ratio=True,
                ),
                dict(
                    type='RandomCrop',
                    crop_type='absolute_range',
                    crop_size=(384, 600),
                    allow_negative_crop=True,
                ),
                dict(type='RandomChoiceResize', scales=coco_scales, keep_ratio=True),
            ],
        ],
    ),
    dict(type='PackDetInputs'),
]
num_epochs = 50

model = dict(num_queries=300, test_cfg=dict(max_per_img=300))
train_dataloader = dict(
    batch_size=2,
    dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline),
)
# Each detector keeps its own learning-rate multipliers (paramwise_cfg).
optim_wrapper = dict(
    constructor='GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=1e-4, weight_decay=1e-4, fused=True),
    clip_grad=dict(max_norm=0.1, norm_type=2),
)
train_cfg = dict(max_epochs=num_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=num_epochs, by_epoch=True, milestones=[40], gamma=0.1)
]
# 8 GPUs with 2 images each.
auto_scale_lr = dict(enable=False, base_batch_size=16)
