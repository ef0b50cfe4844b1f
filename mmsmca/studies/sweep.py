"""Start the unfinished runs of a study and assign GPUs to them, on this machine or on Slurm."""

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import submitit
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope

from mmsmca.checks.preflight import PHASES, check_config
from mmsmca.checks.trial import trial_faults
from mmsmca.errors import ConfigError, DataError, raise_first

from .record import FAILED, Run, RunRecord, Study, StudyError
from .run_process import TrainRun, state

# Time limit of local jobs, 30 days: submitit's default is only minutes.
UNLIMITED_MINUTES = 30 * 24 * 60


def check_slurm(parameters: dict) -> None:
    """Refuse unknown parameters of submitit for Slurm, and a missing time limit."""
    known = sorted(submitit.SlurmExecutor._valid_parameters())
    for key in parameters:
        if key not in known:
            names = ', '.join(known)
            raise StudyError(f'--slurm {key}: submitit has no such parameter. Known: {names}.')
    if 'time' not in parameters:
        raise StudyError(
            '--slurm: time is missing. Give the limit of a job in minutes, such as time=2880; a '
            'run that reaches it is queued again and continues from its last checkpoint.'
        )


@dataclass
class Resources:
    """Resources of each run.

    Attributes:
        jobs: Number of concurrent runs.
        gpus_per_job: GPUs per run; more than one are used through torchrun. Concurrent runs share
            the GPUs of this machine, in turn, if it has too few.
        slurm: submitit's parameters for Slurm without the prefix ``slurm_`` (``partition``,
            ``time``, ...), or None for this machine.
    """

    jobs: int = 1
    gpus_per_job: int = 0
    slurm: dict | None = None

    def check(self) -> None:
        """Refuse more GPUs for a run than this machine has."""
        available = len(visible_gpus())
        if self.slurm is None and self.gpus_per_job > available:
            raise StudyError(
                f'--gpus-per-job {self.gpus_per_job}: this machine has {available} GPUs.'
            )

    def gpus(self, place: int) -> list[str]:
        """GPUs for a job slot (from 0), out of those that this process may use."""
        visible, count = visible_gpus(), self.gpus_per_job
        return [visible[i % len(visible)] for i in range(place * count, (place + 1) * count)]


@dataclass
class Sweep:
    """Runs of one study in one folder.

    Attributes:
        study: The study.
        runs: Runs of the study to carry out.
        work_dir: Folder of the study's runs.
        train_script: Path of mmsmca's ``tools/train.py``.
        resources: Resources of each run.
        active: submitit's jobs of the active runs, by run folder.
    """

    study: Study
    runs: list[Run]
    work_dir: Path
    train_script: Path
    resources: Resources
    active: dict[str, submitit.Job] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)

    def dir_of(self, run: Run) -> Path:
        """Folder of a run."""
        return self.work_dir / run.dir

    def state_of(self, run: Run) -> str:
        """State on disk, or ``'running'``, ``'queued'`` or, without known length, ``'unknown'``."""
        if not run.id:
            return 'unknown'
        if run.dir in self.active:
            return 'running' if self.active[run.dir].state == 'RUNNING' else 'queued'
        return state(self.dir_of(run))

    def check(self) -> None:
        """Check data and models of every experiment, and try those whose runs are all new."""
        first = {run.experiment: run for run in reversed(self.runs)}
        check_experiments({name: _copy(run) for name, run in first.items()})
        begun = {run.experiment for run in self.runs if self.state_of(run) != 'new'}
        new = {name: _copy(run) for name, run in first.items() if name not in begun}
        check_experiments(new, lambda cfg: raise_first(trial_faults(cfg, 'train')))

    def pending(self, retry_failed: bool) -> list[Run]:
        """Runs to start: new ones, those cut off and, with ``retry_failed``, those that failed."""
        wanted = {'new', 'cut off', 'failed'} if retry_failed else {'new', 'cut off'}
        return [run for run in self.runs if state(self.dir_of(run)) in wanted]

    def start(self, run: Run) -> None:
        """Submit one of the pending runs."""
        run_dir = self.dir_of(run)
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / FAILED).unlink(missing_ok=True)
        config = self.work_dir / 'jobs' / f'{run.experiment}-seed{run.seed}-{run.id}.py'
        config.parent.mkdir(exist_ok=True)
        cfg = _copy(run)
        _set_hooks(cfg)
        cfg.dump(config)
        (experiment,) = (e for e in self.study.experiments if e.name == run.experiment)
        record = RunRecord(
            study=self.study.name,
            experiment=experiment,
            seed=run.seed,
            id=run.id,
            world_size=max(1, self.resources.gpus_per_job),
        )
        record.write(run_dir)
        train = TrainRun(run_dir, self._command(config, run_dir), record, cfg.train_cfg.to_dict())
        if self.resources.slurm is None:
            # Each concurrent run gets the GPUs of its job slot.
            place = min(set(range(self.resources.jobs)) - set(self._places.values()))
            self._places[run.dir] = place
            train.gpus, train.owned = self.resources.gpus(place), True
        self.active[run.dir] = self._executor(run).submit(train)

    def _command(self, config: Path, run_dir: Path) -> list[str]:
        gpus = self.resources.gpus_per_job
        train = [str(self.train_script), str(config), '--work-dir', str(run_dir), '--resume']
        if gpus < 2:
            return [sys.executable, *train]
        torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={gpus}']
        return [sys.executable, *torchrun, *train, '--launcher', 'pytorch']

    def _executor(self, run: Run) -> submitit.Executor:
        folder = self.work_dir / 'jobs'
        if self.resources.slurm is None:
            executor: submitit.Executor = submitit.LocalExecutor(folder)
            executor.update_parameters(timeout_min=UNLIMITED_MINUTES)
            return executor
        executor = submitit.AutoExecutor(folder, cluster='slurm')
        # Slurm runs one job of a name at a time: one that a killed sweep left there ends first.
        slurm = dict(dependency='singleton') | self.resources.slurm
        executor.update_parameters(
            name=f'{self.study.name}-{run.experiment}-{run.seed}-{run.id}',
            gpus_per_node=self.resources.gpus_per_job,
            **{f'slurm_{key}': value for key, value in slurm.items()},
        )
        return executor

    def collect(self) -> list[Run]:
        """The runs that have ended since the last call; they are no longer active."""
        ended = [run for run in self.runs if run.dir in self.active and self.active[run.dir].done()]
        for run in ended:
            del self.active[run.dir]
            self._places.pop(run.dir, None)
        return ended

    def cancel(self) -> None:
        """Cancel the jobs in Slurm's queue; runs on this machine end with their owner."""
        for job in self.active.values() if self.resources.slurm else ():
            job.cancel()


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    allowed = os.environ.get('CUDA_VISIBLE_DEVICES')
    if allowed is None:
        return [str(gpu) for gpu in range(torch.cuda.device_count())]
    return [gpu.strip() for gpu in allowed.split(',') if gpu.strip()]


def check_experiments(
    cfgs: dict[str, Config], check: Callable[[Config], None] | None = None
) -> None:
    """Check configs, data and models of experiments, by name, before anything starts."""
    for name, cfg in cfgs.items():
        try:
            # MMEngine's own runner starts without checks.
            if cfg.get('runner_type') != 'Runner':
                (check or _check)(cfg)
        except (ConfigError, DataError) as error:
            raise StudyError(f'{name}: {error}') from error


def _check(cfg: Config) -> None:
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    register_all_modules(init_default_scope=False)
    check_config(cfg, PHASES['train'])


def _copy(run: Run) -> Config:
    assert run.cfg is not None  # Only a plan has runs of unknown length, without config.
    return Config(run.cfg.to_dict())


def _set_hooks(cfg: Config) -> None:
    """Have checkpoints that a kill cannot corrupt, and evaluations that log their iteration."""
    hooks = cfg.get('default_hooks') or ConfigDict()
    if hooks.get('checkpoint', {}).get('type') == 'CheckpointHook':
        hooks.checkpoint.type = 'AtomicCheckpointHook'
    if hooks.get('logger', {}).get('type') == 'LoggerHook' and 'max_iters' in cfg.train_cfg:
        hooks.logger.log_metric_by_epoch = False
