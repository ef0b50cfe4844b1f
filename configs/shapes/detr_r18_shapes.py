_base_ = './smca_r18_shapes.py'

# MMDetection's DETR, for comparison: SMCA's model and recipe without the spatial prior, with
# DETR's classification loss and matching cost.
model = dict(
    type='DETR',
    decoder=dict(
        _delete_=True,
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=128, num_heads=8, dropout=0.0, batch_first=True),
            cross_attn_cfg=dict(embed_dims=128, num_heads=8, dropout=0.0, batch_first=True),
            ffn_cfg=dict(embed_dims=128, feedforward_channels=512, ffn_drop=0.0),
        ),
        return_intermediate=True,
    ),
    bbox_head=dict(
        type='DETRHead',
        sync_cls_avg_factor=False,
        loss_cls=dict(
            _delete_=True,
            type='CrossEntropyLoss',
            bg_cls_weight=0.1,
            use_sigmoid=False,
            loss_weight=1.0,
            class_weight=1.0,
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            match_costs=[
                dict(type='ClassificationCost', weight=1.0),
                dict(type='BBoxL1Cost', weight=5.0, box_format='xywh'),
                dict(type='IoUCost', iou_mode='giou', weight=2.0),
            ]
        )
    ),
)
