_base_ = './smca_r50_8xb2-50e_coco.py'

max_epochs = 108
train_cfg = dict(max_epochs=max_epochs)
# The paper does not state the epoch of the learning rate drop.
param_scheduler = [
    dict(type='MultiStepLR', begin=0, end=max_epochs, by_epoch=True, milestones=[80], gamma=0.1)
]
