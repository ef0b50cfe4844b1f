_base_ = '../smca_r50_8xb2-50e_coco.py'

# DETR has no such argument.
_base_.model.pop('strides')
# The paper's baseline: DETR with SMCA's losses and recipe, that is, without the spatial prior.
model = dict(
    type='DETR',
    decoder=dict(
        _delete_=True,
        num_layers=6,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.1),
            cross_attn_cfg=dict(embed_dims=256, num_heads=8, dropout=0.1),
            ffn_cfg=dict(embed_dims=256, feedforward_channels=2048, ffn_drop=0.1),
        ),
        return_intermediate=True,
    ),
    bbox_head=dict(
        type='DETRHead',
        # Focal loss needs an initial probability of 0.01, which SMCA's head sets by itself.
        init_cfg=dict(type='Xavier', bias_prob=0.01, override=dict(name='fc_cls')),
    ),
)
