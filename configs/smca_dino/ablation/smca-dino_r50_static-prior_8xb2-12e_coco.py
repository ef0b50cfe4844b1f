_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

# The paper's prior: the centre of the first box, scales that no box decides.
model = dict(
    decoder=dict(layer_cfg=dict(spatial_prior_cfg=dict(_delete_=True, type='StaticPrior')))
)
