"""Whether the schedule of the learning rate fits the length of the training."""

from collections.abc import Iterator

from mmengine.config import Config

from mmsmca.errors import Fault


def schedule_faults(cfg: Config, iters: int) -> Iterator[Fault]:
    """Find a warm-up that takes most of the training, and a last step that comes early or never.

    This happens to a config that inherits the schedule of another length, or of other data.

    Args:
        cfg: The config of the training.
        iters: Its number of iterations.

    Yields:
        Warnings.
    """
    epochs, schedulers = cfg.train_cfg.get('max_epochs'), cfg.get('param_scheduler') or []
    for i, node in enumerate(schedulers if isinstance(schedulers, list) else [schedulers]):
        length, unit = (epochs, 'epochs') if node.get('by_epoch', True) else (iters, 'iterations')
        if not length or 'type' not in node:
            continue
        place, begin, end = f'param_scheduler.{i}', node.get('begin', 0), node.get('end', length)
        period = node.get('T_max', node.get('total_steps'))
        steps = [begin + period] if period else node.get('milestones', [])
        if min(node.get('start_factor', 1), node.get('factor', 1)) < 1 and begin == 0:
            if end > length / 2:
                yield UserWarning(
                    f'{place}: the warm-up takes {end} of the {length} {unit} of the training. '
                    f'Set {place}.end to a smaller number.'
                )
        elif 'factor' in node:
            steps = [begin]
        if steps and not length / 2 <= max(steps) <= length:
            yield UserWarning(
                f'{place}: the learning rate falls for the last time after {max(steps)} {unit}, '
                f'but the training has {length}. Set {place} to fit its length.'
            )
