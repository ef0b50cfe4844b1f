_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

model = dict(decoder=dict(layer_cfg=dict(spatial_prior_cfg=dict(gated=False))))
