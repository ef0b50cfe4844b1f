# SMCA beside other detectors under the recipe of configs/head_to_head/_base_/recipe_coco.py.
baseline = 'detr'
seeds = [0, 1, 2]
experiments = [
    dict(
        name='detr',
        config='../head_to_head/detr_r50_head-to-head_8xb2-50e_coco.py',
        published='mmdet::detr/detr_r50_8xb2-150e_coco.py',
    ),
    dict(
        name='conditional-detr',
        config='../head_to_head/conditional-detr_r50_head-to-head_8xb2-50e_coco.py',
        published='mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
    ),
    dict(
        name='dab-detr',
        config='../head_to_head/dab-detr_r50_head-to-head_8xb2-50e_coco.py',
        published='mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py',
    ),
    dict(
        name='deformable-detr',
        config='../head_to_head/deformable-detr_r50_head-to-head_8xb2-50e_coco.py',
        published='mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    ),
    dict(
        name='deformable-detr-refine',
        config='../head_to_head/deformable-detr-refine_r50_head-to-head_8xb2-50e_coco.py',
        published='mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
    ),
    dict(
        name='deformable-detr-refine-twostage',
        config='../head_to_head/deformable-detr-refine-twostage_r50_head-to-head_8xb2-50e_coco.py',
        published='mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
    ),
    dict(
        name='smca',
        config='../head_to_head/smca_r50_head-to-head_8xb2-50e_coco.py',
        published='smca/smca_r50_8xb2-50e_coco.py',
    ),
    dict(
        name='smca-multi-scale',
        config='../head_to_head/smca-multi-scale_r50_head-to-head_8xb2-50e_coco.py',
        published='smca/smca-multi-scale_r50_8xb1-50e_coco.py',
    ),
]
