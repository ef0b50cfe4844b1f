_base_ = './smca_r50_8xb2-50e_coco.py'

# The authors' later release: a convolutional encoder on strides 8 to 64, which finally halves the
# resolution of the finest level.
model = dict(
    strides=[8, 16, 32, 64],
    backbone=dict(out_indices=(1, 2, 3)),
    neck=dict(in_channels=[512, 1024, 2048], num_outs=4),
    encoder=dict(
        type='SMCAConvEncoder',
        num_layers=5,
        layer_cfg=dict(ffn_cfg=dict(feedforward_channels=1024)),
    ),
    decoder=dict(
        layer_cfg=dict(
            ffn_cfg=dict(feedforward_channels=1024),
            # 8 * 32 / stride: the logarithm of the prior is multiplied by stride / 32.
            spatial_prior_cfg=dict(beta=[16.0, 16.0, 8.0, 4.0]),
        ),
    ),
    test_cfg=dict(max_per_img=500),
)

train_dataloader = dict(batch_size=1)
auto_scale_lr = dict(base_batch_size=8)
