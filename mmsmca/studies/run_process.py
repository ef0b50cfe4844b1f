"""One run in its folder: who holds it, its training process, and what it was trained on.

A run's folder below the study's work dir:

- ``run.json``: what runs, written before it starts: experiment, seed, config; and for every attempt
  when, at which revision, with which versions and on which hardware, written by the attempt.
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
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from importlib.metadata import distributions
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import torch
from submitit.helpers import DelayedSubmission

from mmsmca.engine.timing import cpu_name
from mmsmca.errors import UserError
from mmsmca.files import write_json

from .report.logs import last_evaluation, read_records

LOG_TAIL_LINES = 15
PACKAGES = ('torch', 'mmcv', 'mmengine', 'mmdet', 'mmdetection', 'mmsmca', 'numpy')
# A run that the system kills (most often for its memory) so often has failed.
MAX_KILLED = 3


class HeldError(UserError):
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


def end_run(run_dir: Path) -> bool:
    """End a run's processes, whoever started them; it can be resumed.

    Args:
        run_dir: Folder of the run.

    Returns:
        Whether they were told to: False where they are not of this machine, or not there.
    """
    try:
        processes = json.loads((run_dir / 'processes.json').read_text())
    except (OSError, ValueError):
        return False
    if processes['host'] != socket.gethostname() or not is_held(run_dir):
        return False
    # The first forwards the signal to the second, and may be gone.
    for process in processes['ids']:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGTERM)
            return True
    return False


class TrainRun:
    """Train one run to its end and record how it ended. This is what a job of submitit calls.

    Args:
        run_dir: Folder of the run.
        command: The training command; it resumes by itself.
        gpus: What the command sees as CUDA_VISIBLE_DEVICES. Defaults to None: what the job sees.
        revision_of: A folder in the repository whose revision is recorded.
    """

    def __init__(
        self,
        run_dir: Path,
        command: Sequence[str],
        revision_of: Path,
        gpus: Sequence[str] | None = None,
    ) -> None:
        self.run_dir = run_dir
        self.command = list(command)
        self.revision_of = revision_of
        self.gpus = gpus

    def __call__(self) -> None:
        """Train.

        Raises:
            HeldError: If another process is training this run.
        """
        run_dir = self.run_dir
        environment = dict(os.environ)
        if self.gpus is not None:
            environment['CUDA_VISIBLE_DEVICES'] = ','.join(self.gpus)
        # Patience: whoever asks is_held() has the lock for a moment.
        with hold(run_dir / '.lock', patience=5.0) as lock:
            log = run_dir / 'train.log'
            start = time.monotonic()
            attempt: dict[str, Any] = dict(
                started=_now(),
                git=git_revision(self.revision_of),
                versions=versions(),
                hardware=hardware(),
            )
            _record_attempt(run_dir, attempt)
            # The child inherits the lock: should this process be killed, the run is still held.
            with log.open('ab') as output, _forward_signals() as forward:
                forward.process = subprocess.Popen(
                    self.command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lock.fileno()],
                    env=environment,
                )
                ids = [os.getpid(), forward.process.pid]
                write_json(run_dir / 'processes.json', dict(host=socket.gethostname(), ids=ids))
                exit_code = forward.process.wait()
            attempt['exit_code'] = exit_code
            attempts = _record_attempt(run_dir, attempt)
            killed = sum(attempt.get('exit_code') == -signal.SIGKILL for attempt in attempts)
            if exit_code == 0:
                peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
                metrics, steps = last_evaluation(read_records(run_dir))
                write_json(
                    run_dir / 'result.json',
                    dict(
                        finished=_now(),
                        iterations=steps,
                        seconds=round(time.monotonic() - start, 1),
                        # Kibibytes, but bytes on macOS.
                        peak_memory_mib=round(
                            peak / (1024**2 if sys.platform == 'darwin' else 1024)
                        ),
                        metrics=metrics,
                    ),
                )
            elif exit_code > 0 and not forward.received:
                # Below 0 a signal ended it: cut off, not failed.
                failure = dict(exit_code=exit_code, log_tail=log_tail(log))
                write_json(run_dir / 'failed.json', failure)
            elif killed >= MAX_KILLED:
                reason = f'killed {killed} times by SIGKILL: most often the memory is too small'
                failure = dict(exit_code=exit_code, log_tail=[*log_tail(log), reason])
                write_json(run_dir / 'failed.json', failure)

    def checkpoint(self) -> DelayedSubmission:
        """Before Slurm's time limit: end the training, and queue the run again.

        Returns:
            What submitit queues; the run resumes from its last checkpoint.
        """
        end_run(self.run_dir)
        return DelayedSubmission(self)


def _record_attempt(run_dir: Path, attempt: dict) -> list[dict]:
    """Write an attempt into ``run.json``, over what was written of it before; all attempts."""
    path = run_dir / 'run.json'
    record = json.loads(path.read_text()) if path.exists() else {}
    earlier = [x for x in record.get('attempts', []) if x['started'] != attempt['started']]
    record['attempts'] = [*earlier, attempt]
    write_json(path, record)
    return record['attempts']


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
