_base_ = './smca_dino_shapes.py'

# The same on handwritten digits, on which nothing was chosen.
# `tools/make_digits.py data/digits` generates the data.
chosen = (
    'Nothing was chosen on digits: recipe and models are those of shapes. Deformable DETR with two '
    'stages has 256 channels, as MMDetection allows no fewer, the others have 128.'
)
experiments = [
    dict(experiment, config=[*experiment.config, '../small/_base_/digits.py'])
    for experiment in _base_.experiments
]
