_base_ = './smca_r50_8xb2-50e_coco.py'

# An unpublished hybrid: Deformable DETR's encoder on strides 8 to 64, and SMCA's decoder, which
# attends to all of them.
model = dict(
    strides=[8, 16, 32, 64],
    backbone=dict(out_indices=(1, 2, 3)),
    neck=dict(in_channels=[512, 1024, 2048], num_outs=4),
    encoder=dict(
        type='SMCADeformableEncoder',
        layer_cfg=dict(ffn_cfg=dict(feedforward_channels=1024)),
    ),
    decoder=dict(
        layer_cfg=dict(
            ffn_cfg=dict(feedforward_channels=1024),
            # 8 * 32 / stride: the logarithm of the prior is multiplied by stride / 32.
            spatial_prior_cfg=dict(beta=[32.0, 16.0, 8.0, 4.0]),
        ),
    ),
)

train_dataloader = dict(batch_size=1)
# As in Deformable DETR, sampling offsets have a lower learning rate than the rest.
optim_wrapper = dict(paramwise_cfg=dict(custom_keys={'sampling_offsets': dict(lr_mult=0.1)}))
auto_scale_lr = dict(base_batch_size=8)
