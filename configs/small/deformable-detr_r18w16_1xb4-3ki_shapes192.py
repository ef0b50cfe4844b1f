_base_ = [
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    './_base_/recipe.py',
]

globals().update(_base_.recipe)
model = _base_.multi_scale
model.num_feature_levels = 3
model.encoder.layer_cfg.self_attn_cfg.update(num_levels=3, dropout=0.0)
model.decoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.decoder.layer_cfg.cross_attn_cfg.update(num_levels=3, dropout=0.0)
