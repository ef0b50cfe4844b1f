_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

# The paper's prior: centred on the first box, with scales that do not depend on boxes.
model = dict(
    decoder=dict(layer_cfg=dict(spatial_prior_cfg=dict(_delete_=True, type='StaticPrior')))
)
