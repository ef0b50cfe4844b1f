_base_ = './dino_r18_head-to-head_shapes.py'

# The settings of MMDetection's dino-4scale_r50_improved, at the rate of the recipe.
model = dict(
    bbox_head=dict(loss_cls=dict(loss_weight=2.0)),
    positional_encoding=dict(offset=-0.5, temperature=10000),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=72)),
)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys=dict(
            sampling_offsets=dict(lr_mult=0.1),
            reference_points=dict(lr_mult=0.1),
        )
    )
)
