_base_ = [
    'mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    './_base_/recipe_coco.py',
]

model = _base_.recipe.model
train_dataloader = _base_.recipe.train_dataloader
optim_wrapper = _base_.recipe.optim_wrapper
train_cfg = _base_.recipe.train_cfg
param_scheduler = _base_.recipe.param_scheduler
auto_scale_lr = _base_.recipe.auto_scale_lr
