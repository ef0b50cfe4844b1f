# What each part of the spatial modulation brings, from DETR with SMCA's losses to SMCA.
baseline = 'detr-focal-loss'
seeds = [0, 1, 2]
budgets = [dict(iterations=1500)]
chosen = (
    'The recipe was chosen on other images with SMCA and Deformable DETR in view; nothing was '
    'chosen on these.'
)
experiments = [
    dict(
        name='detr-focal-loss',
        config='../small/detr_r18w16_1xb4-3ki_shapes192.py',
        published='smca/detr_r50_focal-loss_8xb2-50e_coco.py',
        cfg_options={
            'model.bbox_head.loss_cls': {
                '_delete_': True,
                'type': 'FocalLoss',
                'use_sigmoid': True,
                'gamma': 2.0,
                'alpha': 0.25,
                'loss_weight': 2.0,
            },
            'model.bbox_head.init_cfg': {
                'type': 'Xavier',
                'bias_prob': 0.01,
                'override': {'name': 'fc_cls'},
            },
            'model.train_cfg.assigner.match_costs.0': {'type': 'FocalLossCost', 'weight': 2.0},
        },
    ),
    dict(
        name='head-shared',
        config='../small/smca_r18w16_1xb4-3ki_shapes192.py',
        published='smca/smca_r50_head-shared_8xb2-50e_coco.py',
        cfg_options={
            'model.decoder.layer_cfg.spatial_prior_cfg.head_shared': True,
        },
    ),
    dict(
        name='fixed',
        config='../small/smca_r18w16_1xb4-3ki_shapes192.py',
        published='smca/smca_r50_fixed-scale_8xb2-50e_coco.py',
        cfg_options={
            'model.decoder.layer_cfg.spatial_prior_cfg.scale': 'fixed',
        },
    ),
    dict(
        name='isotropic',
        config='../small/smca_r18w16_1xb4-3ki_shapes192.py',
        cfg_options={
            'model.decoder.layer_cfg.spatial_prior_cfg.scale': 'isotropic',
        },
    ),
    dict(
        name='independent',
        config='../small/smca_r18w16_1xb4-3ki_shapes192.py',
        published='smca/smca_r50_8xb2-50e_coco.py',
        cfg_options={
            'model.decoder.layer_cfg.spatial_prior_cfg.scale': 'independent',
        },
    ),
    dict(
        name='covariance',
        config='../small/smca_r18w16_1xb4-3ki_shapes192.py',
        cfg_options={
            'model.decoder.layer_cfg.spatial_prior_cfg.scale': 'covariance',
        },
    ),
]
