_base_ = [
    '../smca/smca_r50_8xb2-50e_coco.py',
    './_base_/recipe.py',
]

globals().update(_base_.recipe)
model = _base_.single_scale
model.encoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.decoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.decoder.layer_cfg.cross_attn_cfg.dropout = 0.0
model.strides = [16]
