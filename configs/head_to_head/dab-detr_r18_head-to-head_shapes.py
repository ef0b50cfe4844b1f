_base_ = [
    'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    './_base_/recipe_shapes.py',
]

model = _base_.recipe.single_scale

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
