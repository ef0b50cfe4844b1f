_base_ = './smca-dino_r50_8xb2-12e_coco.py'

model = dict(
    strides=[4, 8, 16, 32, 64],
    num_feature_levels=5,
    backbone=dict(out_indices=(0, 1, 2, 3)),
    neck=dict(in_channels=[256, 512, 1024, 2048], num_outs=5),
)
