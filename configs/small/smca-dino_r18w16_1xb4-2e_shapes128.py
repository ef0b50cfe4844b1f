# The quick start: SMCA-DINO, small enough to learn the generated set "shapes" from scratch on a CPU
# in minutes.
_base_ = ['../smca_dino/smca-dino_r50_8xb2-12e_coco.py', '../_base_/shapes.py']

_base_.shapes.train_dataloader.update(batch_size=4, persistent_workers=False)
# Half of the images, twice: what is interrupted goes on from the end of an epoch.
_base_.shapes.train_dataloader.dataset.indices = 2000
globals().update(_base_.shapes)

# ResNet-18 with a quarter of its channels, trained from scratch; strides 8, 16, 32; 128 channels.
ffn_cfg = dict(embed_dims=128, feedforward_channels=512)
model = dict(
    num_queries=25,
    backbone=dict(
        depth=18,
        base_channels=16,
        frozen_stages=-1,
        norm_cfg=dict(requires_grad=True),
        norm_eval=False,
        init_cfg=None,
    ),
    neck=dict(in_channels=[32, 64, 128], out_channels=128, num_outs=3),
    encoder=dict(num_levels=3, layer_cfg=dict(self_attn_cfg=dict(embed_dims=128), ffn_cfg=ffn_cfg)),
    decoder=dict(
        num_layers=3,
        strides=[8, 16, 32],
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=128),
            cross_attn_cfg=dict(embed_dims=128),
            ffn_cfg=ffn_cfg,
        ),
    ),
    positional_encoding=dict(num_feats=64),
    bbox_head=dict(num_classes=6, embed_dims=128),
    dn_cfg=dict(group_cfg=dict(num_dn_queries=24)),
    test_cfg=dict(max_per_img=25),
)

# Nothing is pretrained: the backbone learns at the rate of the rest.
optim_wrapper = dict(optimizer=dict(lr=2.5e-4, fused=True), paramwise_cfg=None)

max_epochs = 2
train_cfg = dict(max_epochs=max_epochs, val_interval=1)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    # Of 1,000 iterations.
    dict(type='MultiStepLR', by_epoch=False, milestones=[850], gamma=0.1),
]
auto_scale_lr = dict(base_batch_size=4)

default_hooks = dict(
    checkpoint=dict(type='AtomicCheckpointHook', max_keep_ckpts=1, save_best='coco/bbox_mAP')
)
# Interrupted and resumed (tools/train.py --resume), a run ends with the weights that it would have
# had, bit for bit on a CPU.
custom_hooks = [dict(type='EpochSeedHook')]
randomness = dict(seed=0)
