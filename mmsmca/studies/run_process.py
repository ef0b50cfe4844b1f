"""One run in its folder: its lock, its training process and its outcome.

A run's folder in the study's work directory contains:

- ``run.json``: description of the run, see :class:`.record.RunRecord`.
- ``result.json``: written last; its presence means that the run is finished.
- ``failed.json``: the last attempt failed without being interrupted; retried only on request.
- ``.lock``: held by the run's processes, so that the run is not started twice.
- MMEngine's files. A run without ``result.json`` and ``failed.json`` was cut off and is resumed.
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
# Seconds to wait for a lock: is_held() takes it for a moment.
PATIENCE = 5.0
# A run that is killed this often (usually for lack of memory) counts as failed.
MAX_KILLED = 3


class HeldError(UserError):
    """A folder that another process is using. The message names the process."""


@contextmanager
def hold(path: Path, patience: float = 0.0) -> Iterator[TextIOWrapper]:
    """Hold a lock file; it is released once no process has the file open any more.

    Args:
        path: Lock file; created if missing, never removed.
        patience: Seconds to wait for the lock. Defaults to 0.

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
    """State on disk: ``'finished'``, ``'failed'``, ``'cut off'`` (to be resumed) or ``'new'``."""
    if read_json(run_dir / 'result.json') is not None:
        return 'finished'
    if (run_dir / 'failed.json').exists():
        return 'failed'
    return 'cut off' if (run_dir / RUN).exists() else 'new'


def end_run(run_dir: Path) -> bool:
    """Terminate a run's processes, whoever started them; the run can be resumed.

    Args:
        run_dir: Folder of the run.

    Returns:
        Whether they were told to end: False if they have ended or are on another machine.
    """
    processes = read_json(run_dir / 'processes.json') or {}
    if processes.get('host') != socket.gethostname():
        return False
    # The first forwards the signal to the second. It may have ended, and its id been reused.
    for process in processes['ids']:
        if _has_open(process, run_dir / LOCK):
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGTERM)
                return True
    return False


def _has_open(process: int, path: Path) -> bool:
    """Whether a process has a file open; on systems without ``/proc``, whether any process has."""
    files = Path(f'/proc/{process}/fd')
    if not Path('/proc/self/fd').is_dir():
        return is_held(path.parent)
    try:
        return any(file.exists() and file.samefile(path) for file in files.iterdir())
    except OSError:  # It has ended, or belongs to another user.
        return False


@dataclass
class TrainRun:
    """Train one run to its end and record the outcome; submitit calls this as a job.

    Attributes:
        run_dir: Folder of the run.
        command: Training command; it resumes an earlier attempt by itself.
        record: Description of the run. Its revision is that of the first config's repository.
        gpus: CUDA_VISIBLE_DEVICES of the command. Defaults to None: that of the job.
    """

    run_dir: Path
    command: list[str]
    record: RunRecord
    gpus: Sequence[str] | None = None

    def __call__(self) -> None:
        """Train and record the outcome.

        Raises:
            HeldError: If another process is training this run.
        """
        if self.gpus is not None:
            # Also for the record of this machine: submitit hides all GPUs from a local job.
            os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(self.gpus)
        with hold(self.run_dir / LOCK, PATIENCE) as lock:
            start = time.monotonic()
            folder = Path(self.record.experiment.configs[0]).resolve().parent
            # Attempts are identified by their start time.
            started = _now(timespec='microseconds')
            attempt = Attempt(started, _git_revision(folder), versions(), machine())
            self.record.attempts = [attempt]
            self.record.write(self.run_dir)
            # The child inherits the lock: if this process is killed, the run is still held.
            with (self.run_dir / 'train.log').open('ab') as output, Signals() as signals:
                training = subprocess.Popen(
                    self.command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=[lock.fileno()],
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
            tail.append(f'killed {killed} times by SIGKILL: usually for lack of memory')
        # A negative exit code is a signal: the run was cut off and has not failed.
        if killed >= MAX_KILLED or (exit_code > 0 and not interrupted):
            write_json(self.run_dir / 'failed.json', dict(exit_code=exit_code, log_tail=tail))

    def checkpoint(self) -> DelayedSubmission:
        """End the training before Slurm's time limit, and queue the run again.

        Returns:
            Submission that submitit queues; the run resumes from its last checkpoint.
        """
        end_run(self.run_dir)
        return DelayedSubmission(self)


class Signals:
    """Catches SIGINT and SIGTERM and terminates a process, whose last checkpoint remains.

    Attributes:
        received: Whether a signal has arrived, before or after the process started.
    """

    def __init__(self) -> None:
        self.received = False
        self.process: subprocess.Popen | None = None

    def forward_to(self, process: subprocess.Popen) -> None:
        """Set the process; a signal that arrived while it started is forwarded now."""
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
    """Last lines that a run printed."""
    text = (run_dir / 'train.log').read_text(errors='replace')
    return text.splitlines()[-LOG_TAIL_LINES:]


def _git_revision(folder: Path) -> str | None:
    """Commit of the folder's repository, marked if files differ from it; None if there is none."""
    command = ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--match=']
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
