# SMCA-DINO beside DINO (as it ships, with its improved settings, under the loss of SMCA-DINO),
# Deformable DETR in its three forms, of which two stages run at twice the width, and SMCA itself.
# On handwritten digits, on which nothing was chosen: `tools/make_digits.py data/digits` makes them.
_config = '../head_to_head/{}_r18_head-to-head_digits.py'
baseline = 'dino-qfl'
seeds = [0, 1, 2]
budgets = [dict(iterations=1500), dict(iterations=1500, time_of='smca-dino')]
chosen = 'Nothing was chosen on digits: recipe and models are those of shapes.'
experiments = [
    dict(name=name, config=_config.format(name))
    for name in (
        'smca-dino',
        'dino-qfl',
        'dino',
        'dino-improved',
        'deformable-detr',
        'deformable-detr-refine',
        'deformable-detr-refine-twostage',
        'smca-multi-scale',
        'smca',
    )
]
