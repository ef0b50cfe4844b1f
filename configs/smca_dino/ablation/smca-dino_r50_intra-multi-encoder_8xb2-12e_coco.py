_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

# The paper's encoder, without stride 8: attention among all cells would be too expensive.
model = dict(
    strides=[16, 32, 64],
    backbone=dict(out_indices=(2, 3)),
    neck=dict(in_channels=[1024, 2048], num_outs=3),
    encoder=dict(
        type='SMCAEncoder',
        num_layers=5,
        layer_kinds=['intra', 'intra', 'multi', 'intra', 'intra'],
    ),
)
