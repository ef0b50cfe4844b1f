_base_ = './smca-dino_r18w16_1xb4-3ki_shapes192.py'

# DINO's encoder: what tools/convert_dino.py makes of a DINO with it needs no imitation.
model = dict(
    encoder=dict(
        _delete_=True,
        type='SMCADeformableEncoder',
        num_layers=2,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=128, dropout=0.0),
            ffn_cfg=dict(embed_dims=128, feedforward_channels=512, ffn_drop=0.0),
        ),
    )
)
