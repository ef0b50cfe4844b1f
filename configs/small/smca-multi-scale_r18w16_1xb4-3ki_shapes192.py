_base_ = [
    '../smca/smca-multi-scale_r50_8xb1-50e_coco.py',
    './_base_/recipe.py',
]

globals().update(_base_.recipe)
model = _base_.multi_scale
# Intra-Multi-Intra on strides 8, 16 and 32.
model.encoder.update(num_layers=3, layer_kinds=['intra', 'multi', 'intra'])
model.strides = [8, 16, 32]
model.encoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.decoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.decoder.layer_cfg.cross_attn_cfg.dropout = 0.0
