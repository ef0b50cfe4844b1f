_base_ = [
    '../smca/smca-multi-scale_r50_8xb1-50e_coco.py',
    './_base_/recipe_shapes.py',
]

model = _base_.recipe.multi_scale
# Intra-Multi-Intra on strides 8, 16 and 32.
model.encoder.update(num_layers=3, layer_kinds=['intra', 'multi', 'intra'])
model.decoder.strides = [8, 16, 32]
model.encoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.decoder.layer_cfg.self_attn_cfg.dropout = 0.0
model.decoder.layer_cfg.cross_attn_cfg.dropout = 0.0

train_dataloader = _base_.recipe.train_dataloader
val_dataloader = _base_.recipe.val_dataloader
test_dataloader = val_dataloader
val_evaluator = _base_.recipe.val_evaluator
test_evaluator = val_evaluator
optim_wrapper = _base_.recipe.optim_wrapper
train_cfg = _base_.recipe.train_cfg
param_scheduler = _base_.recipe.param_scheduler
auto_scale_lr = _base_.recipe.auto_scale_lr
default_hooks = _base_.recipe.default_hooks
log_processor = _base_.recipe.log_processor
randomness = _base_.recipe.randomness
