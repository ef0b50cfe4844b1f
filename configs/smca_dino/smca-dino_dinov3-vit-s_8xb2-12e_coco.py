_base_ = './smca-dino_r50_8xb2-12e_coco.py'

model = dict(
    # A patch has 16 pixels.
    data_preprocessor=dict(pad_size_divisor=16),
    backbone=dict(
        _delete_=True,
        type='TransformersBackbone',
        model='facebook/dinov3-vits16-pretrain-lvd1689m',
        out_indices=(11,),
    ),
    neck=dict(_delete_=True, type='SimpleFeaturePyramid', in_channels=384, out_channels=256),
)
# The earlier a block, the lower its rate, as in ViTDet; the embeddings come before the first.
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            'backbone.model.embeddings': dict(lr_mult=0.1 * 0.8**12),
            **{
                f'backbone.model.model.layer.{block}.': dict(lr_mult=0.1 * 0.8 ** (11 - block))
                for block in range(12)
            },
        }
    )
)
