# SMCA compared with MMDetection's detectors on COCO, all trained with the recipe of
# configs/_base_/head_to_head_coco.py.
baseline = 'detr'
seeds = [0, 1, 2]
experiments = [
    dict(name=name, config=[config, '../_base_/head_to_head_coco.py'])
    for name, config in (
        ('detr', 'mmdet::detr/detr_r50_8xb2-150e_coco.py'),
        (
            'conditional-detr',
            'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py',
        ),
        ('dab-detr', 'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py'),
        ('deformable-detr', 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'),
        (
            'deformable-detr-refine',
            'mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
        ),
        (
            'deformable-detr-refine-twostage',
            'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
        ),
        ('dino', 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'),
        ('dino-improved', 'mmdet::dino/dino-4scale_r50_improved_8xb2-12e_coco.py'),
        ('smca', '../smca/smca_r50_8xb2-50e_coco.py'),
        ('smca-multi-scale', '../smca/smca-multi-scale_r50_8xb1-50e_coco.py'),
        ('smca-multi-scale-conv', '../smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py'),
        ('smca-deformable-encoder', '../smca/smca-deformable-encoder_r50_8xb1-50e_coco.py'),
        ('smca-dino', '../smca_dino/smca-dino_r50_8xb2-12e_coco.py'),
    )
]
