# Gain from each part of the spatial modulation, from DETR with SMCA's losses to SMCA.
baseline = 'detr-focal-loss'
seeds = [0]
experiments = [
    dict(
        name='detr-focal-loss',
        config='../smca/ablation/detr_r50_focal-loss_8xb2-50e_coco.py',
    ),
    dict(
        name='head-shared',
        config='../smca/ablation/smca_r50_head-shared_8xb2-50e_coco.py',
    ),
    dict(
        name='fixed',
        config='../smca/ablation/smca_r50_fixed-scale_8xb2-50e_coco.py',
    ),
    dict(
        name='isotropic',
        config='../smca/ablation/smca_r50_isotropic-scale_8xb2-50e_coco.py',
    ),
    dict(
        name='independent',
        config='../smca/smca_r50_8xb2-50e_coco.py',
    ),
    dict(
        name='covariance',
        config='../smca/ablation/smca_r50_covariance-scale_8xb2-50e_coco.py',
    ),
]
