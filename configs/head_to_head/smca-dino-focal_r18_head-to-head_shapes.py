_base_ = './smca-dino_r18_head-to-head_shapes.py'

# DINO's classification loss.
model = dict(
    bbox_head=dict(
        loss_cls=dict(
            _delete_=True,
            type='FocalLoss',
            use_sigmoid=True,
            gamma=2.0,
            alpha=0.25,
            loss_weight=1.0,
        )
    )
)
