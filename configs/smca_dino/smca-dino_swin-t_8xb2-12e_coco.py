_base_ = './smca-dino_r50_8xb2-12e_coco.py'

model = dict(
    # Swin pads by itself, but an exported program only follows sizes that halve evenly.
    data_preprocessor=dict(pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type='TransformersBackbone',
        model='microsoft/swin-tiny-patch4-window7-224',
        config=dict(drop_path_rate=0.2),
    ),
    neck=dict(in_channels=[192, 384, 768]),
)
