_base_ = [
    'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    './_base_/recipe_shapes.py',
]

model = _base_.recipe.single_scale
# MMDetection's Conditional DETR runs with 256 channels only: twice the width of the others.
model.neck.out_channels = 256
model.encoder.layer_cfg.self_attn_cfg.update(embed_dims=256, dropout=0.0)
model.encoder.layer_cfg.ffn_cfg.embed_dims = 256
model.decoder.layer_cfg.self_attn_cfg.update(embed_dims=256, attn_drop=0.0)
model.decoder.layer_cfg.cross_attn_cfg.update(embed_dims=256, attn_drop=0.0)
model.decoder.layer_cfg.ffn_cfg.embed_dims = 256
model.positional_encoding.num_feats = 128
model.bbox_head.embed_dims = 256

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
