_base_ = './smca-dino_r50_8xb2-12e_coco.py'

model = dict(
    # ConvNeXt rounds sizes down.
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type='TransformersBackbone',
        model='facebook/convnext-tiny-224',
        config=dict(drop_path_rate=0.1),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
