"""Budgets: schedules fitted to the training length that all runs of a study get."""

from mmengine.config import Config, ConfigDict

from .record import StudyError

# Schedulers that can be fitted.
SCHEDULERS = ('LinearLR', 'MultiStepLR', 'CosineAnnealingLR')


def fit(cfg: Config, iterations: int, where: str) -> Config:
    """Copy of a config whose whole schedule is fitted to a number of iterations.

    Warm-up schedulers, which begin at 0, raise the learning rate and end before training does, stay
    unchanged. The iterations of other schedulers are scaled with the training length. The intervals
    of evaluations and checkpoints change so that their number stays the same. ``where`` begins the
    message of the error if the config cannot be fitted.
    """
    cfg = Config(cfg.to_dict())
    train_cfg = cfg.get('train_cfg') or ConfigDict()
    length = train_cfg.get('max_iters')
    if length is None:
        raise StudyError(
            f'{where}: budgets are in iterations, but its train_cfg has no max_iters: train with '
            "train_cfg=dict(type='IterBasedTrainLoop', max_iters=...), or leave out budgets."
        )
    for key in ('val_begin', 'dynamic_intervals'):
        if key in train_cfg:
            raise StudyError(
                f'{where}: train_cfg.{key} cannot be fitted to a budget: remove it, or leave out '
                'budgets.'
            )
    schedulers = cfg.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    names = [_name(s, f'{where}: param_scheduler[{i}]') for i, s in enumerate(schedulers)]
    named = list(zip(schedulers, names, strict=True))
    warm_up = max((s.end for s, name in named if _is_warm_up(s, name, length)), default=0)

    def scaled(iteration: int) -> int:
        return max(1, round(iteration * iterations / length))

    drops = [iterations]
    for scheduler, name in named:
        if _is_warm_up(scheduler, name, length):
            continue
        begin, end = scheduler.get('begin', 0), min(scheduler.get('end', length), length)
        new_begin = scaled(begin) if begin > warm_up else begin
        factor = (scaled(end) - new_begin) / (end - begin)
        if begin > warm_up:
            scheduler.begin = new_begin
            drops.append(new_begin)
        if 'end' in scheduler:
            scheduler.end = scaled(end)
        if name == 'CosineAnnealingLR' and 'T_max' in scheduler:
            scheduler.T_max = max(1, round(scheduler.T_max * factor))
        elif name == 'MultiStepLR':
            steps = [max(1, round(step * factor)) for step in scheduler.milestones]
            scheduler.milestones = steps
            drops += [new_begin + step for step in steps[:1]]
    if min(drops) <= warm_up:
        raise StudyError(
            f'{where}: a budget of {iterations} iterations is too small: its warm-up takes '
            f'{warm_up}, and the learning rate would drop after {min(drops)}. Give it more '
            'iterations, or shorten the warm-up.'
        )
    train_cfg.max_iters = iterations
    checkpoint = cfg.get('default_hooks', ConfigDict()).get('checkpoint') or {}
    # By default, MMEngine's loop evaluates every 1,000 iterations, and its hook saves the last.
    for settings, key, default in ((train_cfg, 'val_interval', 1000), (checkpoint, 'interval', -1)):
        if (interval := settings.get(key, default)) > 0:
            settings[key] = fit_interval(interval, length, iterations, f'{where}: {key}')
    return cfg


def fit_interval(interval: int, length: int, iterations: int, where: str) -> int:
    """Interval that gives ``iterations`` as many evaluations as ``interval`` gives ``length``.

    Evaluations, and likewise checkpoints, come at its multiples and after the last iteration.
    """
    count = -(-length // interval)
    # Of the intervals that give this number, the one closest to the same part of the training.
    fitted = max(round(interval * iterations / length), -(-iterations // count))
    if count > 1:
        fitted = min(fitted, (iterations - 1) // (count - 1))
    if fitted < 1 or -(-iterations // fitted) != count:
        raise StudyError(
            f'{where}: no interval divides a budget of {iterations} iterations into {count}, as '
            f'{interval} divides {length}. Give it more iterations, or a larger interval.'
        )
    return fitted


def _name(scheduler: ConfigDict, where: str) -> str:
    """Name of a scheduler; an error if it cannot be fitted or counts epochs."""
    name = getattr(scheduler.type, '__name__', str(scheduler.type).split('.')[-1])
    if name not in SCHEDULERS:
        raise StudyError(
            f'{where}: budgets cannot be fitted to {name}: train with {", ".join(SCHEDULERS)}, or '
            'leave out budgets.'
        )
    if scheduler.get('by_epoch', True):
        raise StudyError(
            f'{where} counts epochs: set by_epoch=False, as budgets are in iterations.'
        )
    return name


def _is_warm_up(scheduler: ConfigDict, name: str, length: int) -> bool:
    return (
        name == 'LinearLR'
        and scheduler.get('begin', 0) == 0
        and scheduler.get('end', length) < length
        and scheduler.get('start_factor', 1 / 3) < scheduler.get('end_factor', 1.0)
    )
