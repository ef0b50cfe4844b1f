_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'

custom_imports = dict(imports=['mmsmca'], allow_failed_imports=False)

model = dict(
    type='SMCADETR',
    num_queries=300,
    decoder=dict(
        strides=[32], layer_cfg=dict(spatial_prior_cfg=dict(scale='independent', beta=8.0))
    ),
    bbox_head=dict(
        type='SMCAHead',
        # Every loss is divided by the number of boxes over all processes.
        sync_cls_avg_factor=True,
        loss_cls=dict(
            _delete_=True,
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=2.0,
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            match_costs=[
                dict(type='FocalLossCost', weight=2.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ]
        )
    ),
    test_cfg=dict(max_per_img=300),
)

# faster-coco-eval where it is installed, with the results of pycocotools.
val_evaluator = dict(type='FastestCocoMetric')
test_evaluator = val_evaluator

# One call for all weights that are trained alike.
optim_wrapper = dict(constructor='GroupedOptimWrapperConstructor', optimizer=dict(fused=True))
# Faster steps without an accelerator.
custom_hooks = [dict(type='CPUSpeedHook')]

# A run that is killed leaves whole checkpoints.
default_hooks = dict(checkpoint=dict(type='AtomicCheckpointHook'))

max_epochs = 50
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[40], gamma=0.1)
]
