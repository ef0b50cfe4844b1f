_base_ = [
    '../smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py',
    './_base_/recipe.py',
]

globals().update(_base_.recipe)
model = _base_.multi_scale
# Strides 8, 16 and 32; the encoder finally halves the resolution of the finest level.
model.encoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.strides = [8, 16, 32]
# On every stride, Gaussians are as wide as in multi-scale SMCA.
model.decoder.layer_cfg.spatial_prior_cfg = dict(beta=[8.0, 8.0, 4.0])
model.decoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.decoder.layer_cfg.cross_attn_cfg.dropout = 0.0
