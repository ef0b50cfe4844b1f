# Gain from each part of the spatial modulation, from DETR with SMCA's losses to SMCA.
_config = '../small/{}_r18w16_1xb4-3ki_shapes192.py'
_prior = 'model.decoder.layer_cfg.spatial_prior_cfg'
_focal_loss = {
    'model.bbox_head.loss_cls': dict(
        _delete_=True, type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0
    ),
    'model.bbox_head.init_cfg': dict(type='Xavier', bias_prob=0.01, override=dict(name='fc_cls')),
    'model.train_cfg.assigner.match_costs.0': dict(type='FocalLossCost', weight=2.0),
}
baseline = 'detr-focal-loss'
seeds = [0, 1, 2]
budgets = [dict(iterations=1500)]
chosen = (
    'The recipe was chosen on other images with SMCA and Deformable DETR in view; nothing was '
    'chosen on these.'
)
experiments = [
    dict(name=name, config=_config.format(detector), cfg_options=options)
    for name, detector, options in (
        ('detr-focal-loss', 'detr', _focal_loss),
        ('head-shared', 'smca', {f'{_prior}.head_shared': True}),
        ('fixed', 'smca', {f'{_prior}.scale': 'fixed'}),
        ('isotropic', 'smca', {f'{_prior}.scale': 'isotropic'}),
        ('independent', 'smca', {f'{_prior}.scale': 'independent'}),
        ('covariance', 'smca', {f'{_prior}.scale': 'covariance'}),
    )
]
