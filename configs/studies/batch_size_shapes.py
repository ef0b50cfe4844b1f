# The paper finds SMCA insensitive to the batch size. Same learning rate and images seen.
baseline = 'batch-4'
seeds = [0, 1, 2]
experiments = [
    dict(
        name='batch-2',
        config='../small/smca_r18w16_1xb4-3ki_shapes192.py',
        cfg_options={
            'train_dataloader.batch_size': 2,
            'train_cfg.max_iters': 6000,
            'train_cfg.val_interval': 600,
            'param_scheduler.1.end': 6000,
            'param_scheduler.1.milestones': [5000],
            'default_hooks.checkpoint.interval': 600,
        },
    ),
    dict(
        name='batch-4',
        config='../small/smca_r18w16_1xb4-3ki_shapes192.py',
        cfg_options={
            'train_dataloader.batch_size': 4,
            'train_cfg.max_iters': 3000,
            'train_cfg.val_interval': 300,
            'param_scheduler.1.end': 3000,
            'param_scheduler.1.milestones': [2500],
            'default_hooks.checkpoint.interval': 300,
        },
    ),
    dict(
        name='batch-8',
        config='../small/smca_r18w16_1xb4-3ki_shapes192.py',
        cfg_options={
            'train_dataloader.batch_size': 8,
            'train_cfg.max_iters': 1500,
            'train_cfg.val_interval': 150,
            'param_scheduler.1.end': 1500,
            'param_scheduler.1.milestones': [1250],
            'default_hooks.checkpoint.interval': 150,
        },
    ),
]
