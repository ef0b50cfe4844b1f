# SMCA and SMCA-DINO beside their rivals on generated data, under the recipe of
# configs/head_to_head/_base_/recipe_shapes.py at half its length: `make study`, on 2 cores within
# 90 minutes. DINO's other forms, two stages and equal training time are in smca_dino_shapes.py.
_config = '../head_to_head/{}_r18_head-to-head_shapes.py'
baseline = 'detr'
seeds = [0, 1, 2]
budgets = [dict(iterations=1500)]
chosen = (
    "SMCA-DINO's prior and encoder were chosen on the split tune of other images, the recipe on "
    'other images with SMCA and Deformable DETR in view; nothing was chosen on these. Conditional '
    'DETR has 256 channels, as MMDetection allows no fewer, the others have 128.'
)
experiments = [
    dict(name=name, config=_config.format(name))
    for name in (
        'detr',
        'conditional-detr',
        'dab-detr',
        'deformable-detr',
        'deformable-detr-refine',
        'dino',
        'smca',
        'smca-multi-scale',
        'smca-dino',
    )
]
