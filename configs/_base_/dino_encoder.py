"""DINO's own encoder, on as many levels as the detector has strides.

Like MMDetection's DINO, it is faster on a GPU with mmcv's compiled operator, and runs without.
"""

dino_encoder = dict(
    _delete_=True,
    type='SMCADeformableEncoder',
    num_layers=6,
    layer_cfg=dict(
        self_attn_cfg=dict(embed_dims=256, dropout=0.0),
        ffn_cfg=dict(embed_dims=256, feedforward_channels=2048, ffn_drop=0.0),
    ),
)
