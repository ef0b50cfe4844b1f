_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

# Not quite zero, as boxes can be empty: a hundredth of a cell.
model = dict(decoder=dict(layer_cfg=dict(spatial_prior_cfg=dict(floor=0.01))))
