_base_ = '../smca-multi-scale_r50_8xb1-50e_coco.py'

# Not in the paper, where only the decoder has a prior: every cell attends to all levels under
# Gaussians around it.
model = dict(
    encoder=dict(
        _delete_=True,
        type='SMCAGaussianEncoder',
        num_layers=5,
        num_levels=3,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.1),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=1024, ffn_drop=0.1),
        ),
    )
)
