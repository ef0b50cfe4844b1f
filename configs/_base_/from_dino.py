"""Fine-tuning of an SMCA-DINO that was a DINO: see docs/checkpoints.md."""

num_epochs = 5
from_dino = dict(
    max_epochs=num_epochs,
    train_cfg=dict(max_epochs=num_epochs),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=500),
        dict(type='MultiStepLR', begin=0, end=num_epochs, by_epoch=True, milestones=[4], gamma=0.1),
    ],
)
