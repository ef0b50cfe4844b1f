"""Run the runs of a study, each in a process of its own, and keep on disk what each of them is.

A run's folder below the study's work dir:

- ``run.json``: what runs, written before it starts: experiment, seed, config, revision, versions.
- ``result.json``: written last; its presence says that the run is finished.
- ``failed.json``: the last attempt failed of itself. It is not tried again unless asked for.
- ``.lock``: held by the run's processes, so that nobody starts it twice.
- the rest is MMEngine's: a run that has neither of the two files was cut off and is resumed.
"""

import fcntl
import json
import os
import platform
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import distributions
from io import TextIOWrapper
from pathlib import Path

import submitit
import torch
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.registry import init_default_scope

from mmsmca.analysis.benchmarks import cpu_name, write_json
from mmsmca.engine.trial_step import trial_step
from mmsmca.preflight import PHASES, ConfigError, DataError, check_config
from mmsmca.studies.study import Run, Study, StudyError

LOG_TAIL_LINES = 15
# submitit ends a job after its time limit and defaults to minutes: 30 days, where nothing is given.
UNLIMITED_MINUTES = 30 * 24 * 60
PACKAGES = ('torch', 'mmcv', 'mmengine', 'mmdet', 'mmdetection', 'mmsmca', 'numpy')


class HeldError(RuntimeError):
    """A folder in which another process works. The message says which."""


@contextmanager
def hold(path: Path, patience: float = 0.0) -> Iterator[TextIOWrapper]:
    """Hold a lock file; it is free again when every process that has it open has ended.

    Args:
        path: The lock file. It is created, and left there.
        patience: Seconds to wait for it.

    Yields:
        The open file, for child processes to inherit.

    Raises:
        HeldError: If another process holds it; the message says which, since when and where.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + patience
    with path.open('a+') as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    file.seek(0)
                    holder = file.read().strip()
                    raise HeldError(f'{path.parent} is held by {holder}.') from None
                time.sleep(0.1)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}, since {_now()}\n')
        file.flush()
        yield file


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec='seconds')


def is_held(run_dir: Path) -> bool:
    """Whether a process of this run is alive, from this sweep or an earlier one."""
    lock = run_dir / '.lock'
    if not lock.exists():
        return False
    with lock.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def state(run_dir: Path) -> str:
    """What disk says: ``'finished'``, ``'failed'``, ``'cut off'`` (to be resumed) or ``'new'``."""
    if (run_dir / 'result.json').exists():
        return 'finished'
    if (run_dir / 'failed.json').exists():
        return 'failed'
    return 'cut off' if (run_dir / 'run.json').exists() else 'new'


def check_runs(study: Study) -> None:
    """Check data and models of a study before anything of it starts.

    Args:
        study: The study.

    Raises:
        StudyError: If an experiment's config, data or model cannot work; the message names the
            experiment and the remedy.
    """
    for run in study.runs[: len(study.experiments)]:
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
    for run in sweep.study.runs[: len(sweep.study.experiments)]:
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
                    config=str(experiment.config),
                    cfg_options=experiment.cfg_options,
                    published=experiment.published,
                )
                for experiment in study.experiments
            ],
            seeds=list(study.seeds),
            runs=[
                dict(experiment=run.experiment.name, seed=run.seed, id=run.id, dir=run.dir_name)
                for run in study.runs
            ],
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
        if self.resources.slurm is not None and job_file.exists():
            # Still in Slurm's queue from an earlier sweep, or ended there.
            job_id = json.loads(job_file.read_text())['id']
            earlier: submitit.Job = submitit.SlurmJob(self.work_dir / 'jobs', job_id)
            if not earlier.done(force_check=True):
                self.active[run.id] = earlier
                return
        run_dir.mkdir(parents=True, exist_ok=True)
        (run_dir / 'failed.json').unlink(missing_ok=True)
        config = self.work_dir / 'jobs' / f'{run.experiment.name}-seed{run.seed}-{run.id}.py'
        config.parent.mkdir(exist_ok=True)
        _with_atomic_checkpoints(run.cfg).dump(config)
        write_json(run_dir / 'run.json', describe(self.study.name, run))
        job = self._executor(run).submit(train_run, run_dir, self._command(config, run_dir))
        write_json(job_file, {'id': job.job_id})
        self.active[run.id] = job

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
                timeout_min=UNLIMITED_MINUTES,
                gpus_per_node=resources.gpus_per_job,
                **{f'slurm_{key}': value for key, value in resources.slurm.items()},
            )
            return executor
        # Side by side, every run has GPUs of its own: those of its place among the jobs.
        slot = min(set(range(resources.jobs)) - set(self._slots.values()))
        self._slots[run.id] = slot
        gpus = resources.gpus_per_job
        local = submitit.LocalExecutor(folder)
        local.update_parameters(
            timeout_min=UNLIMITED_MINUTES,
            gpus_per_node=gpus,
            visible_gpus=list(range(slot * gpus, (slot + 1) * gpus)),
        )
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

    def cancel(self) -> None:
        """End the runs at work; they can be resumed."""
        for job in self.active.values():
            if job is not None:
                job.cancel()


def _with_atomic_checkpoints(cfg: Config) -> Config:
    """The config with MMEngine's checkpoint hook replaced by one that a kill cannot hurt."""
    cfg = Config(cfg.to_dict())
    hook = cfg.get('default_hooks', {}).get('checkpoint', {})
    if hook.get('type') == 'CheckpointHook':
        hook.type = 'AtomicCheckpointHook'
    return cfg


def train_run(run_dir: Path, command: Sequence[str]) -> None:
    """Train one run to its end and record how it ended. This is what a job of submitit does.

    Args:
        run_dir: Folder of the run.
        command: The training command; it resumes by itself.

    Raises:
        HeldError: If another process is training this run.
    """
    # Patience: whoever asks is_held() has the lock for a moment.
    with hold(run_dir / '.lock', patience=5.0) as lock:
        log = run_dir / 'train.log'
        start = time.monotonic()
        # The child inherits the lock: should this process be killed, the run is still held.
        with log.open('ab') as output, _forward_signals() as forward:
            forward.process = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, pass_fds=[lock.fileno()]
            )
            exit_code = forward.process.wait()
        if exit_code == 0:
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            metrics, steps = last_evaluation(scalars(run_dir))
            write_json(
                run_dir / 'result.json',
                dict(
                    finished=_now(),
                    iterations=steps,
                    seconds=round(time.monotonic() - start, 1),
                    # Kibibytes, but bytes on macOS.
                    peak_memory_mib=round(peak / (1024**2 if sys.platform == 'darwin' else 1024)),
                    metrics=metrics,
                ),
            )
        elif exit_code > 0 and not forward.received:
            # Below 0 a signal ended it: cut off, not failed.
            failure = dict(exit_code=exit_code, log_tail=log_tail(log))
            write_json(run_dir / 'failed.json', failure)


class _Forward:
    process: subprocess.Popen | None = None
    received = False


@contextmanager
def _forward_signals() -> Iterator[_Forward]:
    """Hand SIGINT and SIGTERM on to the training process, which leaves its last checkpoint."""
    forward = _Forward()

    def handle(number: int, frame: object) -> None:
        forward.received = True
        if forward.process is not None:
            forward.process.terminate()

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield forward
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def log_tail(log: Path) -> list[str]:
    """The last lines of a log."""
    return log.read_text(errors='replace').splitlines()[-LOG_TAIL_LINES:]


def scalars(run_dir: Path) -> list[dict]:
    """What MMEngine logged, of all attempts in their order; broken lines are left out."""
    entries = []
    for path in sorted(run_dir.glob('*/vis_data/scalars.json')):
        for line in path.read_text(errors='replace').splitlines():
            try:
                entries.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return entries


def last_evaluation(entries: Sequence[dict]) -> tuple[dict, int]:
    """The metrics of the last evaluation among :func:`scalars`, and the last step trained."""
    metrics: dict = {}
    steps = 0
    for entry in entries:
        if 'loss' in entry:
            steps = max(steps, entry['step'])
        found = {key: value for key, value in entry.items() if key.startswith('coco/')}
        metrics = found or metrics
    return metrics, steps


def describe(study: str, run: Run) -> dict:
    """What identifies a run and what it ran on, for its ``run.json``."""
    experiment = run.experiment
    return dict(
        study=study,
        experiment=experiment.name,
        seed=run.seed,
        id=run.id,
        config=str(experiment.config),
        cfg_options=experiment.cfg_options,
        started=_now(),
        git=git_revision(experiment.config.resolve().parent),
        versions=versions(),
        hardware=hardware(),
    )


def git_revision(folder: Path) -> str | None:
    """The commit that the folder's repository is at, marked when files differ from it."""
    command = ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--match=']
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    names = {f'{prefix}{name}' for name in PACKAGES for prefix in ('', 'onedl-')}
    found = {
        str(distribution.name): distribution.version
        for distribution in distributions()
        if distribution.name in names
    }
    return dict(python=platform.python_version(), **dict(sorted(found.items())))


def hardware() -> dict:
    """Processor, cores and GPUs of this machine."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return dict(cpu=cpu_name(), cores=os.cpu_count(), gpus=gpus)
