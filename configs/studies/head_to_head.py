# SMCA compared with MMDetection's detectors on COCO, all trained with the recipe of
# configs/_base_/head_to_head_coco.py.
baseline = 'detr'
seeds = [0, 1, 2]
experiments = [
    dict(name=name, config=[config, '../_base_/head_to_head_coco.py'], published=published)
    for name, config, published in (
        *(
            (name, f'mmdet::{config}', f'mmdet::{config}')
            for name, config in (
                ('detr', 'detr/detr_r50_8xb2-150e_coco.py'),
                ('conditional-detr', 'conditional_detr/conditional-detr_r50_8xb2-50e_coco.py'),
                ('dab-detr', 'dab_detr/dab-detr_r50_8xb2-50e_coco.py'),
                ('deformable-detr', 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'),
                (
                    'deformable-detr-refine',
                    'deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py',
                ),
                (
                    'deformable-detr-refine-twostage',
                    'deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py',
                ),
                ('dino', 'dino/dino-4scale_r50_8xb2-12e_coco.py'),
                ('dino-improved', 'dino/dino-4scale_r50_improved_8xb2-12e_coco.py'),
            )
        ),
        *(
            (name, f'../{config}', config)
            for name, config in (
                ('smca', 'smca/smca_r50_8xb2-50e_coco.py'),
                ('smca-multi-scale', 'smca/smca-multi-scale_r50_8xb1-50e_coco.py'),
                ('smca-multi-scale-conv', 'smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py'),
                ('smca-deformable-encoder', 'smca/smca-deformable-encoder_r50_8xb1-50e_coco.py'),
                ('smca-dino', 'smca_dino/smca-dino_r50_8xb2-12e_coco.py'),
            )
        ),
    )
]
