# SMCA-DINO beside DINO (as it ships, with its improved settings, under the loss of SMCA-DINO) and
# Deformable DETR in its three forms, of which two stages run at twice the width.
_configs = '../head_to_head/{}_r18_head-to-head_shapes.py'
baseline = 'dino'
seeds = [0, 1, 2]
experiments = [
    dict(name=name, config=_configs.format(name))
    for name in (
        'dino',
        'dino-improved',
        'dino-qfl',
        'deformable-detr',
        'deformable-detr-refine',
        'deformable-detr-refine-twostage',
        'smca-dino',
        'smca-dino-focal',
    )
]
