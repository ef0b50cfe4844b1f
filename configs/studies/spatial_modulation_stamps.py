_base_ = './spatial_modulation_shapes.py'

# The same on photographs, all with one ImageNet-trained backbone.
# `tools/make_stamps.py data/stamps` generates the data. Twice the iterations of shapes, the whole
# recipe: with a single scale, detectors have hardly begun to learn after half of it.
budgets = [dict(iterations=3000)]
chosen = (
    'Nothing was chosen on stamps: recipe and models are those of shapes, the rate of the backbone '
    'is a tenth, as with COCO.'
)
experiments = [
    dict(
        experiment,
        config=[experiment.config, '../small/_base_/stamps.py'],
        cfg_options={
            **experiment.cfg_options,
            'model.backbone.out_indices': [1],
            'model.neck.in_channels': [112],
        },
    )
    for experiment in _base_.experiments
]
