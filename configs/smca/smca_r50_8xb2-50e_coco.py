_base_ = ['mmdet::detr/detr_r50_8xb2-150e_coco.py', '../_base_/common.py']

globals().update(_base_.common)

model = dict(
    type='SMCADETR',
    strides=[32],
    num_queries=300,
    # Without the keys of MMDetection's modules that SMCA's do not have.
    encoder=dict(
        layer_cfg=dict(self_attn_cfg=dict(_delete_=True, embed_dims=256, num_heads=8, dropout=0.1))
    ),
    decoder=dict(
        _delete_=True,
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.1),
            cross_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.1),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=2048, ffn_drop=0.1),
            spatial_prior_cfg=dict(scale='independent', beta=8.0),
        ),
    ),
    bbox_head=dict(
        type='SMCAHead',
        # Divide every loss by the number of boxes over all processes.
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

max_epochs = 50
train_cfg = dict(max_epochs=max_epochs)
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[40], gamma=0.1)
]
