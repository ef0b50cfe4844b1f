_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

# A hundredth of a cell, against boxes of no size.
model = dict(decoder=dict(layer_cfg=dict(spatial_prior_cfg=dict(floor=0.01))))
