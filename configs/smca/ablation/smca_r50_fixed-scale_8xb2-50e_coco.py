_base_ = '../smca_r50_8xb2-50e_coco.py'

model = dict(decoder=dict(layer_cfg=dict(spatial_prior_cfg=dict(scale='fixed'))))
