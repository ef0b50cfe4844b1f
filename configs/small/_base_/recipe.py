"""The common recipe on generated data: what every detector of the head-to-head shares.

``tools/make_shapes.py data/shapes192 --size 192 --val 400 --seed 1`` makes the data.

MMEngine refuses two base files with one key, and every detector has MMDetection's config as a base:
hence one name here, and ``globals().update(_base_.recipe)`` in the configs: each of its keys. A
detector's model is ``single_scale`` or ``multi_scale``, and what else it needs.
"""

_base_ = '../../_base_/shapes.py'

num_iters = 3000
eval_interval = 500
shapes_backbone = dict(
    depth=18,
    base_channels=16,
    frozen_stages=-1,
    norm_cfg=dict(requires_grad=True),
    norm_eval=False,
    init_cfg=None,
)
shapes_ffn = dict(embed_dims=128, feedforward_channels=512, ffn_drop=0.0)
shapes_transformer = dict(
    num_queries=25,
    encoder=dict(
        num_layers=2, layer_cfg=dict(self_attn_cfg=dict(embed_dims=128), ffn_cfg=shapes_ffn)
    ),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=128),
            cross_attn_cfg=dict(embed_dims=128),
            ffn_cfg=shapes_ffn,
        ),
    ),
    positional_encoding=dict(num_feats=64),
    bbox_head=dict(num_classes=6, embed_dims=128),
    test_cfg=dict(max_per_img=25),
)

# A dilated C5 of stride 16 for the detectors of one scale, strides 8, 16 and 32 for the others.
single_scale = dict(
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), **shapes_backbone),
    neck=dict(in_channels=[128], out_channels=128),
    **shapes_transformer,
)
multi_scale = dict(
    backbone=dict(out_indices=(1, 2, 3), **shapes_backbone),
    neck=dict(in_channels=[32, 64, 128], out_channels=128, num_outs=3),
    **shapes_transformer,
)

recipe = dict(
    **_base_.shapes,
    # Nothing is pretrained: the backbone learns at the rate of the rest.
    optim_wrapper=dict(
        # One kernel for all parameters instead of a dozen each: a tenth of a step of models this
        # small.
        constructor='GroupedOptimWrapperConstructor',
        optimizer=dict(type='AdamW', lr=2.5e-4, weight_decay=1e-4, fused=True),
        clip_grad=dict(max_norm=0.1, norm_type=2),
        paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))),
    ),
    train_cfg=dict(
        _delete_=True, type='IterBasedTrainLoop', max_iters=num_iters, val_interval=eval_interval
    ),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
        dict(
            type='MultiStepLR',
            begin=0,
            end=num_iters,
            by_epoch=False,
            milestones=[num_iters * 5 // 6],
            gamma=0.1,
        ),
    ],
    auto_scale_lr=dict(base_batch_size=4),
    default_hooks=dict(
        checkpoint=dict(
            type='AtomicCheckpointHook', by_epoch=False, interval=eval_interval, max_keep_ckpts=1
        ),
        logger=dict(interval=50),
    ),
    log_processor=dict(by_epoch=False),
    custom_hooks=[dict(type='CPUSpeedHook')],
    randomness=dict(seed=0),
)
# 192 px drawn, 96 px seen.
recipe['data_root'] = 'data/shapes192/'
recipe['train_pipeline'][2].scale = recipe['test_pipeline'][1].scale = (96, 96)
recipe['train_dataloader'].batch_size = 4
recipe['train_dataloader'].dataset.update(
    data_root=recipe['data_root'], pipeline=recipe['train_pipeline']
)
recipe['val_dataloader'].batch_size = 10
recipe['val_dataloader'].dataset.update(
    data_root=recipe['data_root'], pipeline=recipe['test_pipeline']
)
recipe['test_dataloader'] = recipe['val_dataloader']
recipe['val_evaluator'].ann_file = (
    recipe['data_root'] + 'annotations/instances_{{$EVAL_SPLIT:val}}.json'
)
recipe['test_evaluator'] = recipe['val_evaluator']
