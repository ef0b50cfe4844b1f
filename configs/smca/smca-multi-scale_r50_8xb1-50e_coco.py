_base_ = './smca_r50_8xb2-50e_coco.py'

# C4, C5 and a stride-2 convolution on C5; no FPN. The encoder is 2Intra-Multi-2Intra.
model = dict(
    strides=[16, 32, 64],
    backbone=dict(out_indices=(2, 3)),
    neck=dict(in_channels=[1024, 2048], num_outs=3),
    encoder=dict(
        num_layers=5,
        layer_kinds=['intra', 'intra', 'multi', 'intra', 'intra'],
        layer_cfg=dict(ffn_cfg=dict(feedforward_channels=1024)),
    ),
    decoder=dict(
        layer_cfg=dict(
            ffn_cfg=dict(feedforward_channels=1024),
            # 8 * 32 / stride: the logarithm of the prior is multiplied by stride / 32.
            spatial_prior_cfg=dict(beta=[16.0, 8.0, 4.0]),
        ),
    ),
)

train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
