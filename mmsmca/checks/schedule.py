"""Whether the schedule of the learning rate fits the length of the training."""

import math
import os
import warnings

from mmengine.config import Config, ConfigDict

KEY = 'train_dataloader.dataset'


def check_schedule(cfg: Config, images: dict[str, int]) -> None:
    """Warn if the warm-up takes most of the training, or the last step comes early or never.

    This happens to a config that inherits the schedule of another length, or of other data.

    ``images`` has the numbers of images in the data sets, by config key.
    """
    loop, schedulers = cfg.train_cfg, cfg.get('param_scheduler') or []
    epochs, iters = loop.get('max_epochs'), loop.get('max_iters')
    epoch = _epoch_length(cfg, images)
    if epochs and epoch:
        iters = epochs * epoch
    for i, node in enumerate(schedulers if isinstance(schedulers, list) else [schedulers]):
        length, unit = (epochs, 'epochs') if node.get('by_epoch', True) else (iters, 'iterations')
        if not length or 'type' not in node:
            continue
        place, begin, end = f'param_scheduler.{i}', node.get('begin', 0), node.get('end', length)
        period = node.get('T_max', node.get('total_steps'))
        steps = [begin + period] if period else node.get('milestones', [])
        if min(node.get('start_factor', 1), node.get('factor', 1)) < 1 and begin == 0:
            if end > length / 2:
                warnings.warn(
                    f'{place}: the warm-up takes {end} of the {length} {unit} of the training. '
                    f'Set {place}.end to a smaller number.',
                    stacklevel=2,
                )
        elif 'factor' in node:
            steps = [begin]
        if steps and not length / 2 <= max(steps) <= length:
            warnings.warn(
                f'{place}: the learning rate falls for the last time after {max(steps)} {unit}, '
                f'but the training has {length}. Set {place} to fit its length.',
                stacklevel=2,
            )


def _epoch_length(cfg: Config, images: dict[str, int]) -> int | None:
    """Iterations per epoch; None if the number of images is not known."""
    loader = cfg.train_dataloader
    total = _length(loader.get('dataset'), KEY, images)
    batch = loader.get('batch_size')
    if not total or not batch:
        return None
    return math.ceil(total / int(os.environ.get('WORLD_SIZE', 1)) / batch)


def _length(node: ConfigDict, key: str, images: dict[str, int]) -> int | None:
    if key in images:
        return images[key]
    kind = str(node.get('type'))
    if kind.endswith('ConcatDataset'):
        parts = [_length(n, f'{key}.datasets.{i}', images) for i, n in enumerate(node.datasets)]
        return None if None in parts else sum(part or 0 for part in parts)
    if kind.endswith(('RepeatDataset', 'MultiImageMixDataset')):
        inner = _length(node.dataset, f'{key}.dataset', images)
        return inner and inner * node.get('times', 1)
    return None
