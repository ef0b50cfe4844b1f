_base_ = [
    '../smca/smca-deformable-encoder_r50_8xb1-50e_coco.py',
    './_base_/recipe.py',
]

globals().update(_base_.recipe)
model = _base_.multi_scale
model.encoder.layer_cfg.self_attn_cfg.update(num_levels=3, dropout=0.0)
model.decoder.strides = [8, 16, 32]
# As wide on every stride as multi-scale SMCA is.
model.decoder.layer_cfg.spatial_prior_cfg = dict(beta=[16.0, 8.0, 4.0])
model.decoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.decoder.layer_cfg.cross_attn_cfg.dropout = 0.0
