"""Run the runs of a study: what is left to do, who gets which GPUs, on this machine or Slurm."""

import difflib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path

import submitit
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmsmca.checks.preflight import PHASES, ConfigError, DataError, check_config
from mmsmca.checks.trial_step import trial_step
from mmsmca.files import write_json

from .record import StudyError
from .run_process import TrainRun, end_run, is_held, state
from .study import Run, Study

# submitit ends a job after its time limit and defaults to minutes: 30 days, on this machine.
UNLIMITED_MINUTES = 30 * 24 * 60


def select(
    study: Study,
    experiments: Sequence[str] | None,
    seeds: Sequence[int] | None,
    budgets: Sequence[str] | None = None,
) -> Study:
    """A part of a study's runs.

    Args:
        study: The study.
        experiments: Names of experiments, or None for all.
        seeds: Seeds, or None for all.
        budgets: Names of budgets, or None for all. Defaults to None.

    Returns:
        The study with these runs only.

    Raises:
        StudyError: If the study has no such experiment, seed or budget.
    """
    names = [experiment.name for experiment in study.experiments]
    for name in experiments or ():
        if name not in names:
            raise StudyError(f'--only {name}: the study has the experiments {", ".join(names)}.')
    for seed in seeds or ():
        if seed not in study.seeds:
            raise StudyError(f'--seeds {seed}: the study has the seeds {list(study.seeds)}.')
    known = [budget.name for budget in study.budgets]
    for name in budgets or ():
        if name not in known:
            raise StudyError(f'--budgets {name}: the study has {", ".join(known) or "none"}.')
    runs = tuple(
        run
        for run in study.runs
        if (experiments is None or run.experiment.name in experiments)
        and (seeds is None or run.seed in seeds)
        and (budgets is None or any(budget.name in budgets for budget in run.budgets))
    )
    return replace(study, runs=runs)


def first_runs(study: Study) -> list[Run]:
    """The first run of every experiment that has one."""
    runs: dict[str, Run] = {}
    for run in study.runs:
        runs.setdefault(run.experiment.name, run)
    return list(runs.values())


def check_slurm(parameters: dict) -> None:
    """Refuse Slurm parameters before anything is submitted.

    Args:
        parameters: submitit's parameters for Slurm, without their ``slurm_``.

    Raises:
        StudyError: If one is unknown, or there is no time limit.
    """
    known = sorted(submitit.SlurmExecutor._valid_parameters())
    for key in parameters:
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            hint = f'did you mean {close[0]}?' if close else f'known: {", ".join(known)}.'
            raise StudyError(f'--slurm {key}: submitit has no such parameter; {hint}')
    if 'time' not in parameters:
        raise StudyError(
            '--slurm: time is missing. Give the limit of a job in minutes, as time=2880; a run '
            'that reaches it is queued again and goes on from its last checkpoint.'
        )


def check_runs(study: Study) -> None:
    """Check data and models of a study before anything of it starts.

    Args:
        study: The study.

    Raises:
        StudyError: If an experiment's config, data or model cannot work; the message names the
            experiment and the remedy.
    """
    for run in first_runs(study):
        cfg = Config(run.cfg.to_dict())
        try:
            init_default_scope(cfg.get('default_scope', 'mmdet'))
            register_all_modules(init_default_scope=False)
            check_config(cfg, PHASES['train'])
        except (ConfigError, DataError) as error:
            raise StudyError(f'{run.experiment.name}: {error}') from error


def try_experiments(sweep: 'Sweep') -> None:
    """Run one training step of every experiment of which no run has begun.

    Args:
        sweep: The sweep.

    Raises:
        StudyError: If it fails; the message names the experiment, the error and the module.
    """
    begun = {r.experiment.name for r in sweep.study.runs if sweep.state_of(r) != 'new'}
    for run in first_runs(sweep.study):
        if run.experiment.name not in begun:
            try:
                trial_step(Config(run.cfg.to_dict()))
            except (ConfigError, DataError) as error:
                raise StudyError(f'{run.experiment.name}: {error}') from error


@dataclass
class Resources:
    """What each run gets.

    Attributes:
        jobs: Runs at one time.
        gpus_per_job: GPUs of each run; several are used through torchrun.
        slurm: submitit's parameters for Slurm without their ``slurm_`` (``partition``, ``time``,
            ...), or None for this machine.
    """

    jobs: int = 1
    gpus_per_job: int = 0
    slurm: dict | None = None


@dataclass
class Sweep:
    """The runs of one study in one folder.

    Attributes:
        study: The study.
        work_dir: Where it lives on disk.
        train_script: mmsmca's ``tools/train.py``.
        resources: What each run gets.
        active: The runs at work, with submitit's job, or None for one left by an earlier sweep.
    """

    study: Study
    work_dir: Path
    train_script: Path
    resources: Resources
    active: dict[str, submitit.Job | None] = field(default_factory=dict)
    _slots: dict[str, int] = field(default_factory=dict)

    def dir_of(self, run: Run) -> Path:
        """Folder of a run."""
        return self.work_dir / run.dir_name

    def state_of(self, run: Run) -> str:
        """State on disk, or ``'running'`` or ``'queued'``."""
        if run.id in self.active:
            return 'running' if is_held(self.dir_of(run)) else 'queued'
        return state(self.dir_of(run))

    def write_study(self) -> None:
        """Say on disk which runs belong to the study as it is defined now."""
        study = self.study
        content = dict(
            name=study.name,
            baseline=study.baseline,
            experiments=[
                dict(
                    name=experiment.name,
                    config=list(map(str, experiment.configs)),
                    cfg_options=experiment.cfg_options,
                    published=experiment.published,
                )
                for experiment in study.experiments
            ],
            seeds=list(study.seeds),
            runs=[
                dict(
                    experiment=run.experiment.name,
                    seed=run.seed,
                    id=run.id,
                    dir=run.dir_name,
                    budgets=[budget.name for budget in run.budgets],
                )
                for run in study.runs
            ],
            chosen=study.chosen,
            budgets=[dict(name=budget.name, title=budget.title) for budget in study.budgets],
        )
        write_json(self.work_dir / 'study.json', content)

    def pending(self, retry_failed: bool) -> list[Run]:
        """The runs to start: new ones and those cut off; those that failed only if asked for."""
        wanted = {'new', 'cut off', 'failed'} if retry_failed else {'new', 'cut off'}
        return [run for run in self.study.runs if state(self.dir_of(run)) in wanted]

    def start(self, run: Run) -> None:
        """Hand a run to submitit, unless an earlier sweep's process is still at it.

        Args:
            run: One of :meth:`pending`.
        """
        run_dir = self.dir_of(run)
        if is_held(run_dir):
            self.active[run.id] = None
            return
        job_file = run_dir / 'job.json'
        cluster = 'local' if self.resources.slurm is None else 'slurm'
        if cluster == 'slurm' and job_file.exists():
            job = json.loads(job_file.read_text())
            # Still in Slurm's queue from an earlier sweep, or ended there. A process of a machine
            # has a number too, but no place in the queue.
            if job.get('cluster') == 'slurm':
                earlier: submitit.Job = submitit.SlurmJob(self.work_dir / 'jobs', job['id'])
                if not earlier.done(force_check=True):
                    self.active[run.id] = earlier
                    return
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / 'failed.json').unlink(missing_ok=True)
        config = self.work_dir / 'jobs' / f'{run.experiment.name}-seed{run.seed}-{run.id}.py'
        config.parent.mkdir(exist_ok=True)
        _with_atomic_checkpoints(run.cfg).dump(config)
        self._describe(run)
        executor = self._executor(run)
        train = TrainRun(
            run_dir,
            self._command(config, run_dir),
            revision_of=run.experiment.configs[0].resolve().parent,
            gpus=None if cluster == 'slurm' else self._gpus_of(run),
        )
        job = executor.submit(train)
        write_json(job_file, dict(id=job.job_id, cluster=cluster))
        self.active[run.id] = job

    def _describe(self, run: Run) -> None:
        """Write what identifies a run into its ``run.json``; its attempts stay there."""
        path = self.dir_of(run) / 'run.json'
        earlier = json.loads(path.read_text()) if path.exists() else {}
        experiment = run.experiment
        record = dict(
            study=self.study.name,
            experiment=experiment.name,
            seed=run.seed,
            id=run.id,
            config=list(map(str, experiment.configs)),
            cfg_options=experiment.cfg_options,
            world_size=run.world_size,
            started=datetime.now(timezone.utc).isoformat(timespec='seconds'),
            attempts=earlier.get('attempts', []),
        )
        write_json(path, record)

    def _gpus_of(self, run: Run) -> list[str]:
        """The GPUs of a run's place among those that this process may use."""
        count = self.resources.gpus_per_job
        first = self._slots[run.id] * count
        return visible_gpus()[first : first + count]

    def _command(self, config: Path, run_dir: Path) -> list[str]:
        gpus = self.resources.gpus_per_job
        train = [str(self.train_script), str(config), '--work-dir', str(run_dir), '--resume']
        train.append('--no-trial-step')  # The sweep has made it.
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
                name=f'{run.experiment.name}-{run.seed}',
                gpus_per_node=resources.gpus_per_job,
                **{f'slurm_{key}': value for key, value in resources.slurm.items()},
            )
            return executor
        # Side by side, every run has GPUs of its own: those of its place among the jobs.
        slot = min(set(range(resources.jobs)) - set(self._slots.values()))
        self._slots[run.id] = slot
        local = submitit.LocalExecutor(folder)
        local.update_parameters(timeout_min=UNLIMITED_MINUTES)
        return local

    def collect(self) -> list[Run]:
        """Take the runs that have ended off ``active``.

        Returns:
            The runs that have ended since the last call.
        """
        ended = []
        for run in self.study.runs:
            if run.id in self.active and not is_held(self.dir_of(run)):
                job = self.active[run.id]
                if job is None or job.done():
                    ended.append(run)
        for run in ended:
            del self.active[run.id]
            self._slots.pop(run.id, None)
        return ended

    def cancel(self) -> list[Run]:
        """End the runs at work, those of an earlier sweep too; they can be resumed.

        Returns:
            Runs that go on: an earlier sweep started them on another machine.
        """
        beyond_reach = []
        for run in self.study.runs:
            if run.id not in self.active:
                continue
            job = self.active[run.id]
            if job is not None:
                job.cancel()
            elif not end_run(self.dir_of(run)) and is_held(self.dir_of(run)):
                beyond_reach.append(run)
        for run in beyond_reach:
            del self.active[run.id]
        return beyond_reach


def visible_gpus() -> list[str]:
    """The GPUs that this process may use, by what CUDA_VISIBLE_DEVICES calls them."""
    allowed = os.environ.get('CUDA_VISIBLE_DEVICES')
    if allowed is None:
        return [str(gpu) for gpu in range(torch.cuda.device_count())]
    return [gpu.strip() for gpu in allowed.split(',') if gpu.strip()]


def _with_atomic_checkpoints(cfg: Config) -> Config:
    """The config with MMEngine's checkpoint hook replaced by one that a kill cannot hurt."""
    cfg = Config(cfg.to_dict())
    hook = cfg.get('default_hooks', {}).get('checkpoint', {})
    if hook.get('type') == 'CheckpointHook':
        hook.type = 'AtomicCheckpointHook'
    return cfg
