_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

# DINO's own encoder.
model = dict(
    encoder=dict(
        _delete_=True,
        type='SMCADeformableEncoder',
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, dropout=0.0),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=2048, ffn_drop=0.0),
        ),
    )
)
