# How small models learn the generated set "shapes" from scratch on a CPU in minutes. Schedule and
# hooks are here; configs that inherit it set the model.
_base_ = ['../../smca/smca_r50_8xb2-50e_coco.py', '../../_base_/shapes.py']

_base_.shapes.train_dataloader.persistent_workers = False
globals().update(_base_.shapes)
model = dict(bbox_head=dict(num_classes=6))

# Nothing is pretrained: the backbone learns at the rate of the rest.
optim_wrapper = dict(optimizer=dict(lr=2.5e-4), paramwise_cfg=None)

max_epochs = 11
train_cfg = dict(max_epochs=max_epochs, val_interval=4)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[9], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=8)

# Interrupted and resumed (tools/train.py --resume), a run ends with the weights that it would have
# had, bit for bit on a CPU.
default_hooks = dict(checkpoint=dict(max_keep_ckpts=1, save_best='coco/bbox_mAP'))
custom_hooks = [dict(type='EpochSeedHook')]
randomness = dict(seed=0)
