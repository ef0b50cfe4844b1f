"""Budgets: training lengths for all runs of a study, and schedules fitted to them."""

import re
from itertools import accumulate, pairwise
from typing import Any

from mmengine.config import Config, ConfigDict

from .record import Budget, StudyError

BUDGET_KEYS = {'iterations', 'time_of'}
# Arguments of MMEngine's schedulers that count iterations from the scheduler's begin.
SCHEDULERS = {
    'Constant': (),
    'Linear': (),
    'QuadraticWarmup': (),
    'Poly': (),
    'MultiStep': ('milestones',),
    'Step': ('step_size',),
    'CosineAnnealing': ('T_max',),
    'CosineRestart': ('periods',),
    'OneCycle': ('total_steps',),
}


def read_budgets(entries: object, names: list[str], where: str) -> list[Budget]:
    """Read the budgets of a study's file.

    Args:
        entries: Value of the study's key ``budgets``.
        names: Names of the experiments.
        where: Prefix of error messages: the file.

    Raises:
        StudyError: If ``entries`` is not a list of valid and distinct budgets.
    """
    if not isinstance(entries, list) or not entries:
        raise StudyError(f'{where}: budgets: give a list, such as [dict(iterations=1500)].')
    budgets: list[Budget] = []
    for i, entry in enumerate(entries):
        what = f'{where}: budgets[{i}]'
        if not isinstance(entry, dict) or not {'iterations'} <= entry.keys() <= BUDGET_KEYS:
            raise StudyError(
                f'{what}: {entry!r} is not dict(iterations=...) or '
                "dict(iterations=..., time_of='<experiment>')."
            )
        budget = Budget(**entry)
        if type(budget.iterations) is not int or budget.iterations < 1:
            raise StudyError(
                f'{what}: iterations: {budget.iterations!r} is not an integer of at least 1.'
            )
        if budget.time_of not in (None, *names):
            raise StudyError(
                f'{what}: time_of: {budget.time_of!r} is not an experiment of this study '
                f'({", ".join(names)}).'
            )
        if budget in budgets:
            raise StudyError(f'{where}: budgets: one is listed twice. Remove one.')
        budgets.append(budget)
    return budgets


def fit(cfg: Config, iterations: int, where: str) -> Config:
    """Fit a config's whole schedule to a number of iterations.

    Warm-up schedulers, which begin at 0, raise the learning rate and end before training does, stay
    unchanged. The iterations of other schedulers and the intervals of evaluations and checkpoints
    are scaled with the training length, so that their number stays the same.

    Args:
        cfg: Resolved config that counts iterations.
        iterations: Length of the training.
        where: Prefix of error messages: file and experiment.

    Returns:
        The fitted config.

    Raises:
        StudyError: If the config counts epochs, has a scheduler that cannot be fitted, or would
            drop the learning rate during warm-up.
    """
    cfg = Config(cfg.to_dict())
    length = cfg.get('train_cfg', {}).get('max_iters')
    if length is None:
        raise StudyError(
            f'{where}: budgets are in iterations, but its train_cfg has no max_iters: train with '
            "train_cfg=dict(type='IterBasedTrainLoop', max_iters=...), or leave out budgets."
        )
    schedulers = cfg.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    kinds = [_kind(s, f'{where}: param_scheduler[{i}]') for i, s in enumerate(schedulers)]
    warm_ups = [
        s.end for s, kind in zip(schedulers, kinds, strict=True) if _raises(s, kind, length)
    ]
    warm_up = max(warm_ups, default=0)

    def scaled(iteration: int) -> int:
        return max(1, round(iteration * iterations / length))

    drops = [iterations]
    for scheduler, kind in zip(schedulers, kinds, strict=True):
        if _raises(scheduler, kind, length):
            continue
        begin, end = scheduler.get('begin', 0), min(scheduler.get('end', length), length)
        new_begin = scaled(begin) if begin > warm_up else begin
        factor = (scaled(end) - new_begin) / (end - begin)
        if begin > warm_up:
            scheduler.begin = new_begin
            drops.append(new_begin)
        if 'end' in scheduler:
            scheduler.end = scaled(end)
        for key in SCHEDULERS[kind]:
            if key in scheduler:
                scheduler[key] = _times(scheduler[key], factor, sums=key == 'periods')
        if kind in ('MultiStep', 'Step'):
            (key,) = SCHEDULERS[kind]
            drops += [new_begin + step for step in [*_as_list(scheduler[key])][:1]]
    if min(drops) <= warm_up:
        raise StudyError(
            f'{where}: a budget of {iterations} iterations is too small: its warm-up takes '
            f'{warm_up}, and the learning rate would drop after {min(drops)}. Give it more '
            'iterations, or shorten the warm-up.'
        )
    cfg.train_cfg.max_iters = iterations
    if 'val_interval' in cfg.train_cfg:
        cfg.train_cfg.val_interval = scaled(cfg.train_cfg.val_interval)
    checkpoint = cfg.get('default_hooks', ConfigDict()).get('checkpoint')
    if checkpoint is not None and checkpoint.get('interval', -1) > 0:
        checkpoint.interval = scaled(checkpoint.interval)
    return cfg


def _kind(scheduler: ConfigDict, where: str) -> str:
    """Key of a scheduler in ``SCHEDULERS``; an error if it has none or counts epochs."""
    name = getattr(scheduler.type, '__name__', str(scheduler.type).split('.')[-1])
    kind = re.sub('(LR|Momentum|ParamScheduler)$', '', name)
    if kind not in SCHEDULERS:
        raise StudyError(
            f'{where}: budgets cannot be fitted to {name}: train with one of '
            f'{", ".join(f"{kind}LR" for kind in SCHEDULERS)}, or leave out budgets.'
        )
    if scheduler.get('by_epoch', True):
        raise StudyError(
            f'{where} counts epochs: set by_epoch=False, as budgets are in iterations.'
        )
    return kind


def _raises(scheduler: ConfigDict, kind: str, length: int) -> bool:
    """Whether a scheduler is a warm-up."""
    if scheduler.get('begin', 0) > 0 or scheduler.get('end', length) >= length:
        return False
    if kind == 'Linear':
        return scheduler.get('start_factor', 1 / 3) < scheduler.get('end_factor', 1.0)
    return kind == 'QuadraticWarmup' or (kind == 'Constant' and scheduler.get('factor', 1 / 3) < 1)


def _times(numbers: Any, factor: float, sums: bool = False) -> Any:
    """Scale a number or a list of numbers; with ``sums``, scale the cumulative sums instead."""
    if not isinstance(numbers, (list, tuple)):
        return max(1, round(numbers * factor))
    if not sums:
        return [max(1, round(number * factor)) for number in numbers]
    return [b - a for a, b in pairwise([0, *(round(s * factor) for s in accumulate(numbers))])]


def _as_list(numbers: Any) -> list[int]:
    return list(numbers) if isinstance(numbers, (list, tuple)) else [numbers]
