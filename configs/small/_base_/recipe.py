"""The common recipe of the small detectors, on the generated set shapes192.

``tools/make_shapes.py data/shapes192 --size 192 --val 400 --seed 1`` makes the data: drawn at
192 px, resized to 96 px. Evaluation uses the split ``val``. Settings (learning rate, schedule,
width) are chosen on ``tune``: set ``EVAL_SPLIT=tune`` in the environment of any tool.

MMEngine rejects two base files with the same key, and each detector also has MMDetection's config
as a base. So one name holds all keys here; configs call ``globals().update(_base_.recipe)``. A
detector's model is ``single_scale`` or ``multi_scale``, plus what else it needs.
"""

num_iters = 3000
eval_interval = 500
# "r18w16": ResNet-18 with a quarter of its channels, trained from scratch.
small_backbone = dict(
    depth=18,
    base_channels=16,
    frozen_stages=-1,
    norm_cfg=dict(requires_grad=True),
    norm_eval=False,
    init_cfg=None,
)
small_ffn = dict(embed_dims=128, feedforward_channels=512, ffn_drop=0.0)
small_transformer = dict(
    num_queries=25,
    encoder=dict(
        num_layers=2, layer_cfg=dict(self_attn_cfg=dict(embed_dims=128), ffn_cfg=small_ffn)
    ),
    decoder=dict(
        num_layers=3,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=128),
            cross_attn_cfg=dict(embed_dims=128),
            ffn_cfg=small_ffn,
        ),
    ),
    positional_encoding=dict(num_feats=64),
    bbox_head=dict(num_classes=6, embed_dims=128),
    test_cfg=dict(max_per_img=25),
)

# A dilated C5 of stride 16 for single-scale detectors, strides 8, 16 and 32 for the others.
single_scale = dict(
    backbone=dict(strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), **small_backbone),
    neck=dict(in_channels=[128], out_channels=128),
    **small_transformer,
)
multi_scale = dict(
    backbone=dict(out_indices=(1, 2, 3), **small_backbone),
    neck=dict(in_channels=[32, 64, 128], out_channels=128, num_outs=3),
    **small_transformer,
)

small_data = dict(
    data_root='data/shapes192/',
    metainfo=dict(classes=('disc', 'square', 'triangle', 'star', 'cross', 'ring')),
)
small_train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='RandomFlip', prob=0.5),
    dict(type='PackDetInputs'),
]
small_test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor'),
    ),
]
small_eval_dataloader = dict(
    batch_size=10,
    num_workers=1,
    dataset=dict(
        **small_data,
        ann_file='annotations/instances_{{$EVAL_SPLIT:val}}.json',
        data_prefix=dict(img='{{$EVAL_SPLIT:val}}/'),
        pipeline=small_test_pipeline,
    ),
)
small_evaluator = dict(
    type='FastestCocoMetric',
    ann_file=small_data['data_root'] + 'annotations/instances_{{$EVAL_SPLIT:val}}.json',
)

recipe = dict(
    runner_type='CheckedRunner',
    custom_imports=dict(imports=['mmsmca'], allow_failed_imports=False),
    **small_data,
    train_pipeline=small_train_pipeline,
    test_pipeline=small_test_pipeline,
    train_dataloader=dict(
        batch_size=4,
        num_workers=1,
        dataset=dict(
            **small_data,
            ann_file='annotations/instances_train.json',
            data_prefix=dict(img='train/'),
            filter_cfg=dict(filter_empty_gt=False),
            pipeline=small_train_pipeline,
        ),
    ),
    val_dataloader=small_eval_dataloader,
    test_dataloader=small_eval_dataloader,
    val_evaluator=small_evaluator,
    test_evaluator=small_evaluator,
    # Nothing is pretrained, so the backbone has the same learning rate as the rest.
    optim_wrapper=dict(
        # One kernel for all parameters instead of a dozen per parameter: saves a tenth of a step
        # in models this small.
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
    auto_scale_lr=dict(enable=False, base_batch_size=4),
    default_hooks=dict(
        checkpoint=dict(
            type='AtomicCheckpointHook', by_epoch=False, interval=eval_interval, max_keep_ckpts=1
        ),
        logger=dict(interval=50),
    ),
    log_processor=dict(by_epoch=False),
    randomness=dict(seed=0),
)
