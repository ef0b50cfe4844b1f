_base_ = [
    '../smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py',
    './_base_/recipe_shapes.py',
]

globals().update(_base_.recipe)

model = _base_.multi_scale
# Strides 8, 16 and 32; the first is halved by the encoder.
model.encoder.update(num_layers=3, num_levels=3)
model.decoder.strides = [16, 16, 32]
model.decoder.layer_cfg.spatial_prior_cfg = dict(beta=[16.0, 16.0, 8.0])
model.encoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.decoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.decoder.layer_cfg.cross_attn_cfg.dropout = 0.0
# The authors take more detections than there are queries.
model.test_cfg.max_per_img = 25
