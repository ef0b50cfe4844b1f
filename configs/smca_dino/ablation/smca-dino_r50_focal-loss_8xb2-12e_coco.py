_base_ = '../smca-dino_r50_8xb2-12e_coco.py'

# DINO's own classification loss.
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
