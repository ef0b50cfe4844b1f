_base_ = './_base_/recipe.py'

# ResNet-18 with a quarter of its channels, trained from scratch at stride 16; 128 channels; 2 + 3
# layers; no dropout.
model = dict(
    num_queries=25,
    backbone=dict(
        depth=18,
        base_channels=16,
        strides=(1, 2, 2, 1),
        dilations=(1, 1, 1, 2),
        frozen_stages=-1,
        norm_cfg=dict(requires_grad=True),
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[128], out_channels=128),
    encoder=dict(
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=128, dropout=0.0),
            ffn_cfg=dict(embed_dims=128, feedforward_channels=512, ffn_drop=0.0),
        ),
    ),
    decoder=dict(
        num_layers=3,
        strides=[16],
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=128, dropout=0.0),
            cross_attn_cfg=dict(embed_dims=128, dropout=0.0),
            ffn_cfg=dict(embed_dims=128, feedforward_channels=512, ffn_drop=0.0),
        ),
    ),
    positional_encoding=dict(num_feats=64),
    bbox_head=dict(embed_dims=128),
    test_cfg=dict(max_per_img=25),
)
