_base_ = '../smca_r50_8xb2-50e_coco.py'

# Gradients and the optimizer's state are spread over the processes (ZeRO stage 2), in float32.
runner_type = 'FlexibleRunner'
strategy = dict(
    type='DeepSpeedStrategy',
    gradient_clipping=0.1,
    zero_optimization=dict(stage=2),
    # AdamW is PyTorch's.
    config=dict(zero_allow_untested_optimizer=True),
)
optim_wrapper = dict(
    _delete_=True,
    type='DeepSpeedOptimWrapper',
    constructor='GroupedOptimWrapperConstructor',
    optimizer=dict(type='AdamW', lr=0.0001, weight_decay=0.0001, fused=True),
    paramwise_cfg=dict(custom_keys={'backbone': dict(lr_mult=0.1, decay_mult=1.0)}),
)
