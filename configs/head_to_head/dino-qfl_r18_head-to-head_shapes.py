_base_ = './dino_r18_head-to-head_shapes.py'

# Not DINO's own: a classification target that knows the IoU (Generalized Focal Loss, 2006.04388).
model = dict(
    bbox_head=dict(
        loss_cls=dict(
            _delete_=True, type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0
        )
    )
)
