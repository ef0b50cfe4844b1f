_base_ = [
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
    './_base_/recipe.py',
]

globals().update(_base_.recipe)
model = _base_.multi_scale
model.num_feature_levels = 3
model.encoder.layer_cfg.self_attn_cfg.num_levels = 3
model.decoder.layer_cfg.cross_attn_cfg.num_levels = 3
# Fewer, as there are 25 queries, not 900. Each stands for a positive and a negative query.
model.dn_cfg = dict(group_cfg=dict(num_dn_queries=24))
