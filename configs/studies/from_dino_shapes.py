# Trained DINOs and the SMCA-DINOs that tools/convert_dino.py made from them, trained further for a
# tenth and for two fifths of the DINOs' 1,500 iterations. Every seed has a DINO of its own:
# docs/results.md has the commands that make work_dirs/from_dino_shapes/*.pth.
_dino_qfl = {
    'model.bbox_head.loss_cls': dict(
        _delete_=True, type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0
    )
}
baseline = 'dino-600'
seeds = [0, 1, 2, 3, 4]
chosen = (
    'Learning rate, schedule and warm-up were chosen on the split tune, with seed 0 and '
    'smca-dino; nothing was chosen on val.'
)
experiments = [
    dict(
        name=f'{name}-{iterations}',
        config=[f'../small/{config}_r18w16_1xb4-3ki_shapes192.py'],
        cfg_options={
            **options,
            'load_from': f'work_dirs/from_dino_shapes/{name}-{{seed}}.pth',
            'train_cfg.max_iters': iterations,
            'train_cfg.val_interval': 300,
            'default_hooks.checkpoint.interval': 300,
            'param_scheduler': [
                dict(
                    type='LinearLR',
                    start_factor=0.01,
                    by_epoch=False,
                    begin=0,
                    end=iterations // 10,
                ),
                dict(
                    type='CosineAnnealingLR',
                    by_epoch=False,
                    begin=iterations // 10,
                    T_max=iterations - iterations // 10,
                ),
            ],
        },
    )
    for name, config, options in (
        ('dino', 'dino', _dino_qfl),
        ('smca-dino', 'smca-dino', {}),
        # With DINO's encoder.
        ('smca-dino-deformable', 'smca-dino_deformable-encoder', {}),
    )
    for iterations in (150, 600)
]
