_base_ = [
    '../smca_dino/smca-dino_r50_8xb2-12e_coco.py',
    './_base_/recipe.py',
]

globals().update(_base_.recipe)

model = _base_.multi_scale
# One attention layer on the coarsest level, and convolutions between the levels.
model.encoder = dict(layer_cfg=model.encoder.layer_cfg)
model.strides = [8, 16, 32]
model.dn_cfg = dict(group_cfg=dict(num_dn_queries=24))
