"""Fine-tuning of an SMCA-DINO that was a DINO: see docs/checkpoints.md."""

num_epochs = 5
warm_up = num_epochs / 10
from_dino = dict(
    max_epochs=num_epochs,
    train_cfg=dict(max_epochs=num_epochs),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.01, begin=0, end=warm_up, convert_to_iter_based=True),
        dict(
            type='CosineAnnealingLR',
            begin=warm_up,
            end=num_epochs,
            convert_to_iter_based=True,
        ),
    ],
)
