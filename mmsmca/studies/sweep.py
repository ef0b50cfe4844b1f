"""Start the unfinished runs of a study and assign GPUs to them, on this machine or on Slurm."""

import difflib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import submitit
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmsmca.checks.preflight import PHASES, check_config
from mmsmca.checks.trial_step import trial_step
from mmsmca.errors import ConfigError, DataError
from mmsmca.files import read_json, write_json

from .record import Run, RunRecord, Study, StudyError
from .run_process import TrainRun, end_run, is_held, state
from .study import check_names

# Time limit of local jobs, 30 days: submitit's default is only minutes.
UNLIMITED_MINUTES = 30 * 24 * 60


def select(
    study: Study,
    experiments: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    budgets: Sequence[str] | None = None,
) -> list[Run]:
    """Select some of a study's runs.

    Args:
        study: The study.
        experiments: Names of experiments. Defaults to None: all.
        seeds: Seeds. Defaults to None: all.
        budgets: Names of budgets. Defaults to None: all.

    Raises:
        StudyError: If the study has no such experiment, seed or budget.
    """
    check_names('only', experiments, [experiment.name for experiment in study.experiments])
    check_names('seeds', seeds, study.seeds)
    check_names('budgets', budgets, [budget.name for budget in study.budgets])
    return [
        run
        for run in study.runs
        if (experiments is None or run.experiment in experiments)
        and (seeds is None or run.seed in seeds)
        and (budgets is None or set(budgets) & set(run.budgets))
    ]


def check_slurm(parameters: dict) -> None:
    """Check Slurm parameters before anything is submitted.

    Args:
        parameters: submitit's parameters for Slurm, without the prefix ``slurm_``.

    Raises:
        StudyError: If a parameter is unknown, or the time limit is missing.
    """
    known = sorted(submitit.SlurmExecutor._valid_parameters())
    for key in parameters:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(known)}.'
            raise StudyError(f'--slurm {key}: submitit has no such parameter; {hint}')
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
        gpus_per_job: GPUs per run; more than one are used through torchrun.
        slurm: submitit's parameters for Slurm without the prefix ``slurm_`` (``partition``,
            ``time``, ...), or None for this machine.
        share_gpus: Whether concurrent runs may share GPUs, assigned in turn. Defaults to False.
    """

    jobs: int = 1
    gpus_per_job: int = 0
    slurm: dict | None = None
    share_gpus: bool = False

    @property
    def world_size(self) -> int:
        """Number of processes that train a run."""
        return max(1, self.gpus_per_job)

    def check(self) -> None:
        """Check that this machine has enough GPUs.

        Raises:
            StudyError: If there are too few; the message says how many are needed.
        """
        available = len(visible_gpus())
        needed = self.gpus_per_job * (1 if self.share_gpus else self.jobs)
        if self.slurm is None and needed > available:
            hint = '; --share-gpus puts several runs on one' if available else ''
            raise StudyError(
                f'--jobs {self.jobs} with --gpus-per-job {self.gpus_per_job} need {needed} GPUs; '
                f'this machine has {available}{hint}.'
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
        active: submitit's jobs of the active runs, by run folder; None for a run that a process of
            an earlier sweep is training.
    """

    study: Study
    runs: list[Run]
    work_dir: Path
    train_script: Path
    resources: Resources
    active: dict[str, submitit.Job | None] = field(default_factory=dict)
    _places: dict[str, int] = field(default_factory=dict)

    def dir_of(self, run: Run) -> Path:
        """Folder of a run."""
        return self.work_dir / run.dir

    def state_of(self, run: Run) -> str:
        """State on disk, or ``'running'``, ``'queued'`` or, without known length, ``'unknown'``."""
        if not run.id:
            return 'unknown'
        if is_held(self.dir_of(run)):
            return 'running'
        return 'queued' if run.dir in self.active else state(self.dir_of(run))

    def first_runs(self) -> list[Run]:
        """The first run of every experiment that has one."""
        return list({run.experiment: run for run in reversed(self.runs)}.values())[::-1]

    def check(self) -> None:
        """Check data and models before anything starts.

        Raises:
            StudyError: If an experiment's config, data or model cannot be used; the message names
                the experiment and the remedy.
        """
        check_experiments(_cfgs(self.first_runs()))

    def try_experiments(self) -> None:
        """Try a training step of every experiment whose runs are all new.

        Raises:
            StudyError: If a step fails; the message names the experiment, the error and the module.
        """
        begun = {run.experiment for run in self.runs if self.state_of(run) != 'new'}
        new = [run for run in self.first_runs() if run.experiment not in begun]
        _check_each(_cfgs(new), trial_step)

    def pending(self, retry_failed: bool) -> list[Run]:
        """Runs to start: new ones, those cut off and, with ``retry_failed``, those that failed."""
        wanted = {'new', 'cut off', 'failed'} if retry_failed else {'new', 'cut off'}
        return [run for run in self.runs if state(self.dir_of(run)) in wanted]

    def start(self, run: Run) -> None:
        """Submit a run, unless a job of an earlier sweep is still running or queued for it.

        Args:
            run: One of the runs of :meth:`pending`.
        """
        run_dir = self.dir_of(run)
        if is_held(run_dir):
            self.active[run.dir] = None
            return
        cluster = 'local' if self.resources.slurm is None else 'slurm'
        job = read_json(run_dir / 'job.json') or {}
        # A job of an earlier sweep may still be in Slurm's queue. A local job has an id too, but
        # it is not one of that queue.
        if cluster == job.get('cluster') == 'slurm':
            earlier: submitit.Job = submitit.SlurmJob(self.work_dir / 'jobs', job['id'])
            if not earlier.done(force_check=True):
                self.active[run.dir] = earlier
                return
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / 'failed.json').unlink(missing_ok=True)
        config = self.work_dir / 'jobs' / f'{run.experiment}-seed{run.seed}-{run.id}.py'
        config.parent.mkdir(exist_ok=True)
        _with_atomic_checkpoints(_copy(run)).dump(config)
        (experiment,) = (e for e in self.study.experiments if e.name == run.experiment)
        world_size = self.resources.world_size
        record = RunRecord(self.study.name, experiment, run.seed, run.id, world_size)
        record.write(run_dir)
        executor = self._executor(run)
        gpus = None if cluster == 'slurm' else self.resources.gpus(self._places[run.dir])
        submitted = executor.submit(TrainRun(run_dir, self._command(config, run_dir), record, gpus))
        self.active[run.dir] = submitted
        write_json(run_dir / 'job.json', dict(id=submitted.job_id, cluster=cluster))

    def _command(self, config: Path, run_dir: Path) -> list[str]:
        gpus = self.resources.gpus_per_job
        train = [str(self.train_script), str(config), '--work-dir', str(run_dir), '--resume']
        train.append('--no-trial-step')  # The sweep has run it.
        if gpus < 2:
            return [sys.executable, *train]
        torchrun = ['-m', 'torch.distributed.run', '--standalone', f'--nproc-per-node={gpus}']
        return [sys.executable, *torchrun, *train, '--launcher', 'pytorch']

    def _executor(self, run: Run) -> submitit.Executor:
        resources = self.resources
        folder = self.work_dir / 'jobs'
        if resources.slurm is not None:
            executor = submitit.AutoExecutor(folder, cluster='slurm')
            executor.update_parameters(
                name=f'{run.experiment}-{run.seed}',
                gpus_per_node=resources.gpus_per_job,
                **{f'slurm_{key}': value for key, value in resources.slurm.items()},
            )
            return executor
        # Each concurrent run gets the GPUs of its job slot.
        self._places[run.dir] = min(set(range(resources.jobs)) - set(self._places.values()))
        local = submitit.LocalExecutor(folder)
        local.update_parameters(timeout_min=UNLIMITED_MINUTES)
        return local

    def collect(self) -> list[Run]:
        """Remove the runs that have ended from ``active``.

        Returns:
            The runs that have ended since the last call.
        """
        ended = []
        for run in self.runs:
            job = self.active.get(run.dir)
            if run.dir in self.active and not is_held(self.dir_of(run)) and (not job or job.done()):
                ended.append(run)
        for run in ended:
            del self.active[run.dir]
            self._places.pop(run.dir, None)
        return ended

    def cancel(self) -> list[Run]:
        """End the active runs, including those of an earlier sweep; they can be resumed.

        Returns:
            Runs that continue, because an earlier sweep started them on another machine.
        """
        beyond_reach = []
        for run in self.runs:
            if run.dir not in self.active:
                continue
            job = self.active[run.dir]
            if job is not None:
                job.cancel()
            elif not end_run(self.dir_of(run)) and is_held(self.dir_of(run)):
                beyond_reach.append(run)
        for run in beyond_reach:
            del self.active[run.dir]
        return beyond_reach


def visible_gpus() -> list[str]:
    """GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    allowed = os.environ.get('CUDA_VISIBLE_DEVICES')
    if allowed is None:
        return [str(gpu) for gpu in range(torch.cuda.device_count())]
    return [gpu.strip() for gpu in allowed.split(',') if gpu.strip()]


def check_experiments(cfgs: dict[str, Config]) -> None:
    """Check data and models before anything starts.

    Args:
        cfgs: Resolved configs by experiment name, which the checks may change.

    Raises:
        StudyError: If a config, its data or its model cannot be used; the message names the
            experiment and the remedy.
    """
    _check_each(cfgs, _check)


def _check_each(cfgs: dict[str, Config], check: Callable[[Config], None]) -> None:
    for name, cfg in cfgs.items():
        try:
            check(cfg)
        except (ConfigError, DataError) as error:
            raise StudyError(f'{name}: {error}') from error


def _check(cfg: Config) -> None:
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    register_all_modules(init_default_scope=False)
    check_config(cfg, PHASES['train'])


def _cfgs(runs: list[Run]) -> dict[str, Config]:
    """Copies of the runs' configs, by experiment name."""
    return {run.experiment: _copy(run) for run in runs}


def _copy(run: Run) -> Config:
    assert run.cfg is not None  # Only a plan has runs of unknown length, without config.
    return Config(run.cfg.to_dict())


def _with_atomic_checkpoints(cfg: Config) -> Config:
    """Replace MMEngine's checkpoint hook by one whose checkpoints a kill cannot corrupt."""
    hook = cfg.get('default_hooks', {}).get('checkpoint', {})
    if hook.get('type') == 'CheckpointHook':
        hook.type = 'AtomicCheckpointHook'
    return cfg
