_base_ = './smca_dino_shapes.py'

# SMCA-DINO compared with other detectors on photographs, all with one ImageNet-trained backbone.
# `tools/make_stamps.py data/stamps` generates the data.
_single_scale = {'model.backbone.out_indices': [1], 'model.neck.in_channels': [112]}
_experiments = {experiment.name: experiment for experiment in _base_.experiments}
budgets = [
    dict(iterations=1500),
    dict(iterations=3000),
    dict(iterations=1500, time_of='smca-dino'),
]
chosen = (
    'Nothing was chosen on stamps: recipe and models are those of shapes, the rate of the backbone '
    'is a tenth, as with COCO. Conditional DETR has 256 channels, as MMDetection allows no fewer, '
    'the others have 128.'
)
experiments = [
    *(
        dict(_experiments[name], config=[*_experiments[name].config, '../small/_base_/stamps.py'])
        for name in (
            'smca-dino',
            'dino-qfl',
            'deformable-detr-refine',
            'dino-improved',
            'smca-multi-scale',
            'smca-dino-256',
            'dino-qfl-256',
        )
    ),
    *(
        dict(
            name=name,
            config=[f'../small/{name}_r18w16_1xb4-3ki_shapes192.py', '../small/_base_/stamps.py'],
            cfg_options=_single_scale,
        )
        for name in ('smca', 'dab-detr', 'conditional-detr')
    ),
]
