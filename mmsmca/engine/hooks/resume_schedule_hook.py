"""Resumed training with the learning rate and schedule of the config, logging what has changed.

MMEngine restores both from the checkpoint: a run that is resumed with another rate, schedule or
length continues with the old ones, without notice.
"""

from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import Runner

from mmsmca.errors import ConfigError

# The progress of a scheduler, not its settings.
PROGRESS = {'last_step', '_global_step', '_last_value', 'verbose'}


@HOOKS.register_module()
class ResumeScheduleHook(Hook):
    """Compare the optimizer's settings and the schedulers of a checkpoint with the config's.

    Differences are logged as a warning; without any, the hook changes nothing. ``tools/train.py``
    adds it to a resumed run. Runs with several optimizers are left alone.

    Args:
        keep: Whether to use the checkpoint's settings. Defaults to False: use the config's, with
            schedulers advanced to the checkpoint's epoch and iteration.
    """

    def __init__(self, keep: bool = False) -> None:
        self.keep = keep

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Log the differences, and write the settings to use into the checkpoint.

        Args:
            runner: Runner of the training.
            checkpoint: The checkpoint it resumes from, changed in place.

        Raises:
            ConfigError: If the checkpoint has another optimizer or other parameter groups.
        """
        # Other runners shard the optimizer's state.
        if not isinstance(runner, Runner) or not runner._resume:
            return
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            return
        _say_length(runner, checkpoint)
        saved = checkpoint.get('optimizer', {}).get('param_groups')
        if saved is None:
            return
        own = runner.optim_wrapper.optimizer.param_groups
        _check_groups(saved, own)
        changed = _changed_settings(saved, own)
        schedulers = runner.param_schedulers or []
        there = checkpoint.get('param_schedulers') or []
        changed += _changed_schedules(there, [s.state_dict() for s in schedulers])
        if not changed:
            return
        wins, other = ('checkpoint', 'config') if self.keep else ('config', 'checkpoint')
        runner.logger.warning(
            f'Resumed with other settings (checkpoint -> config): {"; ".join(changed)}. The '
            f"{wins}'s are used; --resume-schedule {other} takes the {other}'s."
        )
        if self.keep:
            return
        meta = checkpoint['meta']
        _advance(schedulers, meta['epoch'], meta['iter'])
        for group, mine in zip(saved, own, strict=True):
            group.update({key: value for key, value in mine.items() if key != 'params'})
        # MMEngine logs these as the base rates; None with a single group.
        if base := runner.optim_wrapper.base_param_settings:
            checkpoint['optimizer']['base_param_settings'] = base
        checkpoint['param_schedulers'] = [s.state_dict() for s in schedulers]


def _say_length(runner: Runner, checkpoint: dict) -> None:
    info = checkpoint.get('message_hub', {}).get('runtime_info', {})
    by_epoch = info.get('max_epochs') is not None
    unit, now = ('epoch', runner.max_epochs) if by_epoch else ('iter', runner.max_iters)
    before, done = info.get(f'max_{unit}s'), checkpoint['meta'].get(unit, 0)
    if before is not None and before != now:
        runner.logger.warning(
            f'Resumed with max_{unit}s {before} -> {now}; the config takes precedence.'
        )
    if done >= now:
        runner.logger.warning(
            f'Nothing is left to train: the checkpoint is from {unit} {done}, and '
            f'train_cfg.max_{unit}s is {now}. Raise it to continue training.'
        )


def _check_groups(saved: list[dict], own: list[dict]) -> None:
    sizes = [[len(group['params']) for group in groups] for groups in (saved, own)]
    if sizes[0] != sizes[1]:
        raise ConfigError(
            f'the checkpoint was trained with {len(saved)} parameter groups of '
            f'{sum(sizes[0])} parameters, the config has {len(own)} of {sum(sizes[1])}. Resume '
            'with the optim_wrapper and the model that it was trained with, or start from its '
            'weights: load_from without --resume.'
        )
    if not ({'betas', 'momentum'} & saved[0].keys()) == ({'betas', 'momentum'} & own[0].keys()):
        raise ConfigError(
            'the checkpoint was trained with an optimizer other than optim_wrapper.optimizer. '
            'Resume with the optimizer of the checkpoint, or start from its weights: load_from '
            'without --resume.'
        )


def _changed_settings(saved: list[dict], own: list[dict]) -> list[str]:
    changed: dict[str, None] = {}
    for group, mine in zip(saved, own, strict=True):
        for key, value in mine.items():
            # The current rate follows from the initial rate and the schedule.
            skipped = ('params', 'lr') if 'initial_lr' in mine else ('params',)
            if key in skipped or key not in group:
                continue
            before = group[key]
            if before != (list(value) if isinstance(before, list) else value):
                name = 'lr' if key == 'initial_lr' else key
                changed[f'{name} {before} -> {value}'] = None
    return list(changed)


def _changed_schedules(saved: list[dict], own: list[dict]) -> list[str]:
    if len(saved) != len(own):
        return [f'param_scheduler has {len(saved)} -> {len(own)} entries']
    changed = []
    for i, (before, now) in enumerate(zip(saved, own, strict=True)):
        for key in sorted(now.keys() - PROGRESS - {'base_values'}):
            if key not in before or before[key] != now[key]:
                there = _shown(before.get(key))
                changed.append(f'param_scheduler.{i}.{key} {there} -> {_shown(now[key])}')
    return changed


def _shown(value: Any) -> Any:
    return sorted(value.elements()) if hasattr(value, 'elements') else value


def _advance(schedulers: list, epochs: int, iterations: int) -> None:
    """Step new schedulers as often as training would have, in the same order."""
    by_iteration = [s for s in schedulers if not s.by_epoch]
    by_epoch = [s for s in schedulers if s.by_epoch]
    per_epoch = iterations // epochs if epochs else 0
    for _ in range(epochs):
        for _ in range(per_epoch if by_iteration else 0):
            for scheduler in by_iteration:
                scheduler.step()
        for scheduler in by_epoch:
            scheduler.step()
    for _ in range(iterations - epochs * per_epoch if by_iteration else 0):
        for scheduler in by_iteration:
            scheduler.step()
