"""One run in its folder: who holds it, its training process, and how it ended.

A run's folder below the study's work dir:

- ``run.json``: what runs, see :class:`.record.RunRecord`.
- ``result.json``: written last; its presence says that the run is finished.
- ``failed.json``: the last attempt failed of itself. It is not tried again unless asked for.
- ``.lock``: held by the run's processes, so that nobody starts it twice.
- the rest is MMEngine's: a run that has neither of the two files was cut off and is resumed.
"""

import fcntl
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from io import TextIOWrapper
from pathlib import Path

from submitit.helpers import DelayedSubmission

from mmsmca.engine.timing import machine, versions
from mmsmca.errors import UserError
from mmsmca.files import read_json, write_json

from .record import RUN, Attempt, RunRecord
from .report.logs import read_log

LOCK = '.lock'
LOG_TAIL_LINES = 15
# Whoever asks is_held() has the lock for a moment.
PATIENCE = 5.0
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
        while not _locked(file, fcntl.LOCK_EX):
            if time.monotonic() >= deadline:
                file.seek(0)
                raise HeldError(f'{path.parent} is held by {file.read().strip()}.')
            time.sleep(0.1)
        file.truncate(0)
        file.write(f'process {os.getpid()} on {socket.gethostname()}, since {_now()}\n')
        file.flush()
        yield file


def _locked(file: TextIOWrapper, how: int) -> bool:
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _now(timespec: str = 'seconds') -> str:
    return datetime.now(timezone.utc).isoformat(timespec=timespec)


def is_held(run_dir: Path) -> bool:
    """Whether a process of this run is alive, from this sweep or an earlier one."""
    lock = run_dir / LOCK
    if not lock.exists():
        return False
    with lock.open() as file:
        return not _locked(file, fcntl.LOCK_SH)


def state(run_dir: Path) -> str:
    """What disk says: ``'finished'``, ``'failed'``, ``'cut off'`` (to be resumed) or ``'new'``."""
    if read_json(run_dir / 'result.json') is not None:
        return 'finished'
    if (run_dir / 'failed.json').exists():
        return 'failed'
    return 'cut off' if (run_dir / RUN).exists() else 'new'


def end_run(run_dir: Path) -> bool:
    """End a run's processes, whoever started them; it can be resumed.

    Args:
        run_dir: Folder of the run.

    Returns:
        Whether they were told to: False where they are not of this machine, or not there.
    """
    processes = read_json(run_dir / 'processes.json') or {}
    if processes.get('host') != socket.gethostname():
        return False
    # The first forwards the signal to the second, and may be gone, its number another's by now.
    for process in processes['ids']:
        if _has_open(process, run_dir / LOCK):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
                return True
    return False


def _has_open(process: int, path: Path) -> bool:
    """Whether a process has a file open; where the system does not tell, whether anyone has."""
    files = Path(f'/proc/{process}/fd')
    if not Path('/proc/self/fd').is_dir():
        return is_held(path.parent)
    try:
        return any(file.exists() and file.samefile(path) for file in files.iterdir())
    except OSError:  # It is gone, or another user's.
        return False


@dataclass
class TrainRun:
    """Train one run to its end and record how it ended. This is what a job of submitit calls.

    Attributes:
        run_dir: Folder of the run.
        command: The training command; it resumes by itself.
        record: What runs. Its revision is that of the first config's repository.
        gpus: What the command sees as CUDA_VISIBLE_DEVICES. Defaults to None: what the job sees.
    """

    run_dir: Path
    command: list[str]
    record: RunRecord
    gpus: Sequence[str] | None = None

    def __call__(self) -> None:
        """Train.

        Raises:
            HeldError: If another process is training this run.
        """
        environment = dict(os.environ)
        if self.gpus is not None:
            environment['CUDA_VISIBLE_DEVICES'] = ','.join(self.gpus)
        with hold(self.run_dir / LOCK, PATIENCE) as lock:
            start = time.monotonic()
            folder = Path(self.record.experiment.configs[0]).resolve().parent
            # Attempts are told apart by when they start.
            started = _now(timespec='microseconds')
            attempt = Attempt(started, _git_revision(folder), versions(), machine())
            self.record.attempts = [attempt]
            self.record.write(self.run_dir)
            # The child inherits the lock: should this process be killed, the run is still held.
            with (self.run_dir / 'train.log').open('ab') as output, Signals() as signals:
                training = subprocess.Popen(
                    self.command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lock.fileno()],
                    env=environment,
                )
                signals.forward_to(training)
                processes = dict(host=socket.gethostname(), ids=[os.getpid(), training.pid])
                write_json(self.run_dir / 'processes.json', processes)
                attempt.exit_code = training.wait()
            self.record.write(self.run_dir)
            self._record_end(attempt.exit_code, time.monotonic() - start, signals.received)

    def _record_end(self, exit_code: int, seconds: float, interrupted: bool) -> None:
        killed = sum(attempt.exit_code == -signal.SIGKILL for attempt in self.record.attempts)
        if exit_code == 0:
            # Kibibytes, but bytes on macOS.
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
            log = read_log(self.run_dir, {})
            result = dict(
                finished=_now(),
                iterations=log.iterations,
                seconds=round(seconds, 1),
                peak_memory_mib=round(peak / (1024**2 if sys.platform == 'darwin' else 1024)),
                metrics=log.evaluations[-1].metrics if log.evaluations else {},
            )
            write_json(self.run_dir / 'result.json', result)
            return
        tail = log_tail(self.run_dir)
        if killed >= MAX_KILLED:
            tail.append(f'killed {killed} times by SIGKILL: most often the memory is too small')
        # Below 0 a signal ended it: cut off, not failed.
        if killed >= MAX_KILLED or (exit_code > 0 and not interrupted):
            write_json(self.run_dir / 'failed.json', dict(exit_code=exit_code, log_tail=tail))

    def checkpoint(self) -> DelayedSubmission:
        """Before Slurm's time limit: end the training, and queue the run again.

        Returns:
            What submitit queues; the run resumes from its last checkpoint.
        """
        end_run(self.run_dir)
        return DelayedSubmission(self)


class Signals:
    """Takes SIGINT and SIGTERM, and hands them on to a process, which leaves its last checkpoint.

    Attributes:
        received: Whether one has come, before or after the process was there.
    """

    def __init__(self) -> None:
        self.received = False
        self.process: subprocess.Popen | None = None

    def forward_to(self, process: subprocess.Popen) -> None:
        """Name the process; what came while it started is handed on now."""
        self.process = process
        if self.received:
            process.terminate()

    def _handle(self, number: int, frame: object) -> None:
        self.received = True
        if self.process is not None:
            self.process.terminate()

    def __enter__(self) -> 'Signals':
        both = (signal.SIGINT, signal.SIGTERM)
        self.previous = {number: signal.signal(number, self._handle) for number in both}
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)


def log_tail(run_dir: Path) -> list[str]:
    """The last lines that a run printed."""
    text = (run_dir / 'train.log').read_text(errors='replace')
    return text.splitlines()[-LOG_TAIL_LINES:]


def _git_revision(folder: Path) -> str | None:
    """The commit that the folder's repository is at, marked when files differ from it."""
    command = ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--match=']
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
