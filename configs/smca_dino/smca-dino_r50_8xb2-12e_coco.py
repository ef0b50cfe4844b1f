_base_ = ['mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', '../_base_/common.py']

globals().update(_base_.common)

model = dict(
    type='SMCADINO',
    strides=[8, 16, 32, 64],
    encoder=dict(
        _delete_=True,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=1024, ffn_drop=0.0),
        ),
    ),
    decoder=dict(
        _delete_=True,
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256),
            cross_attn_cfg=dict(embed_dims=256),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=2048, ffn_drop=0.0),
            spatial_prior_cfg=dict(type='BoxPrior', offset=0.25, width=0.25, floor=0.5),
        ),
    ),
    bbox_head=dict(
        type='SMCADINOHead',
        # Scores reflect how well the box fits. DINO's published results use focal loss:
        # ablation/smca-dino_r50_focal-loss_8xb2-12e_coco.py.
        loss_cls=dict(
            _delete_=True, type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0
        ),
    ),
)
