"""Budgets: how long every run of a study trains, and its whole schedule fitted to that."""

from dataclasses import dataclass

from mmengine.config import Config, ConfigDict

from .record import StudyError

BUDGET_KEYS = {'iterations', 'time_of'}


@dataclass(frozen=True)
class Budget:
    """How long runs train.

    Attributes:
        iterations: Of every experiment, or of the one that ``time_of`` names.
        time_of: Name of the experiment whose training time all get; None: all get the iterations.
    """

    iterations: int
    time_of: str | None = None

    @property
    def name(self) -> str:
        """Names a folder."""
        if self.time_of is None:
            return f'{self.iterations}-iterations'
        return f'time-of-{self.iterations}-iterations-of-{self.time_of}'

    @property
    def title(self) -> str:
        """For readers."""
        if self.time_of is None:
            return f'{self.iterations:,} iterations each'
        return f'the training time of {self.iterations:,} iterations of {self.time_of}'

    def iterations_of(self, experiment: str, seconds: dict[str, float]) -> int:
        """Iterations that an experiment trains.

        Args:
            experiment: Its name.
            seconds: Calibrated time per iteration of every experiment.
        """
        if self.time_of in (None, experiment):
            return self.iterations
        return round(self.iterations * seconds[self.time_of] / seconds[experiment])


def read_budgets(entries: object, names: list[str], where: str) -> tuple[Budget, ...]:
    """The budgets of a study's file.

    Args:
        entries: Value of its key ``budgets``.
        names: Of the experiments.
        where: Begins a message: the file.

    Raises:
        StudyError: If they are no list of different budgets.
    """
    if not isinstance(entries, list) or not entries:
        raise StudyError(f'{where}: budgets: give a list, as [dict(iterations=1500)].')
    budgets = []
    for i, entry in enumerate(entries):
        what = f'{where}: budgets[{i}]'
        if not isinstance(entry, dict) or not {'iterations'} <= entry.keys() <= BUDGET_KEYS:
            raise StudyError(
                f'{what}: {entry!r} is not dict(iterations=...) or '
                "dict(iterations=..., time_of='<experiment>')."
            )
        iterations, time_of = entry['iterations'], entry.get('time_of')
        if type(iterations) is not int or iterations < 1:
            raise StudyError(f'{what}: iterations: {iterations!r} is no integer from 1 on.')
        if time_of is not None and time_of not in names:
            raise StudyError(
                f'{what}: time_of: {time_of!r} is no experiment of the study ({", ".join(names)}).'
            )
        budgets.append(Budget(iterations, time_of))
    if len(set(budgets)) < len(budgets):
        raise StudyError(f'{where}: budgets: one is named twice.')
    return tuple(budgets)


def fit(cfg: Config, iterations: int, where: str) -> Config:
    """Fit a config's whole schedule to a number of iterations.

    Warm-up, a scheduler that begins at 0 and ends before the training, stays as it is. What the
    other schedulers say in iterations (``begin``, ``end``, ``milestones``, ``T_max``), the
    intervals of evaluations and of checkpoints shrink or grow with the training, so that there are
    as many of them.

    Args:
        cfg: Resolved config that counts iterations.
        iterations: Length of the training.
        where: Begins a message: file and experiment.

    Returns:
        The fitted config.

    Raises:
        StudyError: If the config counts epochs, or the learning rate would drop during warm-up.
    """
    cfg = Config(cfg.to_dict())
    length = cfg.get('train_cfg', {}).get('max_iters')
    if length is None:
        raise StudyError(
            f'{where}: budgets are in iterations, but its train_cfg has no max_iters: train with '
            "train_cfg=dict(type='IterBasedTrainLoop', max_iters=...), or leave out budgets."
        )

    def scaled(number: int) -> int:
        return max(1, round(number * iterations / length))

    warm_up = 0
    schedulers = cfg.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    drops = [iterations]
    for i, scheduler in enumerate(schedulers):
        if scheduler.get('by_epoch', True):
            raise StudyError(
                f'{where}: param_scheduler[{i}] counts epochs: give it by_epoch=False, as budgets '
                'are in iterations.'
            )
        if scheduler.get('begin', 0) == 0 and scheduler.get('end', length) < length:
            warm_up = max(warm_up, scheduler.end)
            continue
        for key in ('end', 'T_max'):
            if key in scheduler:
                scheduler[key] = scaled(scheduler[key])
        if scheduler.get('begin', 0) > warm_up:
            scheduler.begin = scaled(scheduler.begin)
            drops.append(scheduler.begin)
        if 'milestones' in scheduler:
            scheduler.milestones = [scaled(milestone) for milestone in scheduler.milestones]
            drops += scheduler.milestones
    if min(drops) <= warm_up:
        raise StudyError(
            f'{where}: a budget of {iterations} iterations is too small: its warm-up takes '
            f'{warm_up}, and the learning rate would drop after {min(drops)}. Give it more, or a '
            'shorter warm-up.'
        )
    cfg.train_cfg.max_iters = iterations
    if 'val_interval' in cfg.train_cfg:
        cfg.train_cfg.val_interval = scaled(cfg.train_cfg.val_interval)
    checkpoint = cfg.get('default_hooks', ConfigDict()).get('checkpoint')
    if checkpoint is not None and checkpoint.get('interval', -1) > 0:
        checkpoint.interval = scaled(checkpoint.interval)
    return cfg
