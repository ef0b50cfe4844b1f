# SMCA-DINO beside DINO (as it ships, with its improved settings, under the loss of SMCA-DINO) and
# Deformable DETR in its three forms, of which two stages run at twice the width. Half the
# head-to-head's iterations; `tools/make_shapes.py data/shapes192 --size 192 --val 400 --seed 1`
# makes the data.
_config = '../head_to_head/{}_r18_head-to-head_shapes.py'


def _schedule(num_iters):
    """The recipe's schedule, fitted to fewer iterations."""
    return {
        'train_cfg.max_iters': num_iters,
        'train_cfg.val_interval': num_iters // 6,
        'param_scheduler.1.end': num_iters,
        'param_scheduler.1.milestones': [num_iters * 5 // 6],
        'default_hooks.checkpoint.interval': num_iters // 6,
    }


baseline = 'dino-qfl'
seeds = [0, 1, 2]
experiments = [
    dict(name=name, config=_config.format(name), cfg_options=_schedule(1500))
    for name in (
        'smca-dino',
        'dino-qfl',
        'dino',
        'dino-improved',
        'deformable-detr',
        'deformable-detr-refine',
        'deformable-detr-refine-twostage',
    )
]
