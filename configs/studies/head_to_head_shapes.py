# SMCA beside other detectors on generated data, under the recipe of
# configs/head_to_head/_base_/recipe_shapes.py. `make study` runs it on a CPU. Box refinement and
# two stages have configs there too; with them the study would not end within 90 minutes.
baseline = 'detr'
seeds = [0, 1, 2]
experiments = [
    dict(
        name='detr',
        config='../head_to_head/detr_r18_head-to-head_shapes.py',
    ),
    dict(
        name='conditional-detr',
        config='../head_to_head/conditional-detr_r18_head-to-head_shapes.py',
    ),
    dict(
        name='dab-detr',
        config='../head_to_head/dab-detr_r18_head-to-head_shapes.py',
    ),
    dict(
        name='deformable-detr',
        config='../head_to_head/deformable-detr_r18_head-to-head_shapes.py',
    ),
    dict(
        name='smca',
        config='../head_to_head/smca_r18_head-to-head_shapes.py',
    ),
    dict(
        name='smca-multi-scale',
        config='../head_to_head/smca-multi-scale_r18_head-to-head_shapes.py',
    ),
]
