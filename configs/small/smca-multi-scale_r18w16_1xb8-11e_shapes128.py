_base_ = './smca_r18w16_1xb8-11e_shapes128.py'

# Strides 8, 16 and 32 instead of a dilated C5 at stride 16. The encoder is Intra-Multi-Intra.
model = dict(
    backbone=dict(strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), out_indices=(1, 2, 3)),
    neck=dict(in_channels=[32, 64, 128], num_outs=3),
    encoder=dict(num_layers=3, layer_kinds=['intra', 'multi', 'intra'], num_levels=3),
    decoder=dict(
        strides=[8, 16, 32],
        # As wide as the single-scale model's at stride 16; the others in the paper's ratio to it.
        layer_cfg=dict(spatial_prior_cfg=dict(beta=[16.0, 8.0, 4.0])),
    ),
)
