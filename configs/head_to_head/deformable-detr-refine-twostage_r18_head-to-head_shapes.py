_base_ = './deformable-detr-refine_r18_head-to-head_shapes.py'

# MMDetection's two stages encode a box's position in 512 channels and run with 256 channels only:
# twice the width of the others.
model = dict(
    as_two_stage=True,
    neck=dict(out_channels=256),
    encoder=dict(layer_cfg=dict(self_attn_cfg=dict(embed_dims=256), ffn_cfg=dict(embed_dims=256))),
    decoder=dict(
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256),
            cross_attn_cfg=dict(embed_dims=256),
            ffn_cfg=dict(embed_dims=256),
        )
    ),
    positional_encoding=dict(num_feats=128),
    bbox_head=dict(embed_dims=256),
)
