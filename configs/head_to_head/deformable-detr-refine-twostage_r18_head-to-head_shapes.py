_base_ = './deformable-detr-refine_r18_head-to-head_shapes.py'

# MMDetection's position embedding of the proposals is made for 256 channels: two stages run with
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
