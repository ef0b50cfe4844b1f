"""One run in its folder: its training process and its outcome.

A run's folder in the study's work directory contains:

- ``run.json``: description of the run, see :class:`.record.RunRecord`.
- ``result.json``: written last; its presence means that the run is finished.
- ``failed.json``: the last attempt failed without being interrupted; retried only on request.
- MMEngine's files. A run without ``result.json`` and ``failed.json`` was cut off and is resumed.
"""

import ctypes
import os
import resource
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from submitit.helpers import DelayedSubmission

from mmsmca.engine.timing import machine, versions
from mmsmca.files import read_json, write_json

from .record import FAILED, RESULT, RUN, Attempt, RunRecord
from .report.logs import read_log

LOG_TAIL_LINES = 15
# Seconds that a training has to end after SIGTERM.
PATIENCE = 10.0


@contextmanager
def owned_children() -> Iterator[int]:
    """Own the processes that are started inside: they can tell when their owner is gone.

    Their standard input is a pipe, to which nothing is written. Its other end, which is yielded, is
    open here alone. It closes when the context is left or this process ends, in whatever way.
    """
    before, (read_end, write_end) = os.dup(0), os.pipe()
    os.dup2(read_end, 0)
    os.close(read_end)
    try:
        yield write_end
    finally:
        os.dup2(before, 0)
        os.close(before)
        os.close(write_end)


def owner_is_gone() -> bool:
    """Whether this process's owner is gone, see :func:`owned_children`."""
    return bool(select.select([0], [], [], 0)[0])


def state(run_dir: Path) -> str:
    """State on disk: ``'finished'``, ``'failed'``, ``'cut off'`` (to be resumed) or ``'new'``."""
    if read_json(run_dir / RESULT) is not None:
        return 'finished'
    if (run_dir / FAILED).exists():
        return 'failed'
    return 'cut off' if (run_dir / RUN).exists() else 'new'


@dataclass
class TrainRun:
    """Train one run to its end and record the outcome; submitit calls this as a job.

    Attributes:
        run_dir: Folder of the run.
        command: Training command; it resumes an earlier attempt by itself.
        record: Description of the run. Its revision is that of the first config's repository.
        train_cfg: ``train_cfg`` of the run's config.
        gpus: CUDA_VISIBLE_DEVICES of the command. Defaults to None: that of the job.
        owned: Whether the training ends if this process's owner does. Defaults to False.
    """

    run_dir: Path
    command: list[str]
    record: RunRecord
    train_cfg: dict[str, Any]
    gpus: Sequence[str] | None = None
    owned: bool = False
    _training: subprocess.Popen | None = field(default=None, init=False, repr=False)
    _interrupted: bool = field(default=False, init=False, repr=False)

    def __call__(self) -> None:
        """Train and record the outcome, unless the run is finished or its owner is gone."""
        if state(self.run_dir) == 'finished' or (self.owned and owner_is_gone()):
            return
        if self.gpus is not None:
            # Also for the record of this machine: submitit hides all GPUs from a local job.
            os.environ['CUDA_VISIBLE_DEVICES'] = ','.join(self.gpus)
        start = time.monotonic()
        folder = Path(self.record.experiment.configs[0]).resolve().parent
        # Attempts are identified by their start time.
        attempt = Attempt(
            started=_now('microseconds'),
            git=_git_revision(folder),
            versions=versions(),
            hardware=machine(),
        )
        self.record.attempts = [attempt]
        self.record.write(self.run_dir)
        attempt.exit_code = self._train()
        self.record.write(self.run_dir)
        self._record_end(attempt.exit_code, time.monotonic() - start)

    def _train(self) -> int:
        """Exit code of the training."""
        if read_log(self.run_dir, self.train_cfg).final_metrics:
            return 0  # An earlier attempt was killed before it could record its end.
        with (self.run_dir / 'train.log').open('ab') as output, Signals() as signals:
            self._training = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_end_with_parent if sys.platform == 'linux' else None,
            )
            while self._training.poll() is None:
                time.sleep(0.2)
                if signals.received or self._interrupted or (self.owned and owner_is_gone()):
                    _end(self._training)
                    self._interrupted = True
            return self._training.returncode

    def _record_end(self, exit_code: int, seconds: float) -> None:
        if exit_code == 0:
            # Kibibytes, but bytes on macOS. Without a training, it is Git's.
            unit = 1024**2 if sys.platform == 'darwin' else 1024
            peak = round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit)
            log = read_log(self.run_dir, self.train_cfg)
            result = dict(
                finished=_now(),
                iterations=log.iterations,
                seconds=round(seconds, 1),
                peak_memory_mib=peak if self._training else None,
                metrics=log.final_metrics,
            )
            write_json(self.run_dir / RESULT, result)
        # A negative exit code is a signal: the run was cut off and has not failed.
        elif exit_code > 0 and not self._interrupted:
            failure = dict(exit_code=exit_code, log_tail=log_tail(self.run_dir))
            write_json(self.run_dir / FAILED, failure)

    def checkpoint(self) -> DelayedSubmission:
        """End the training before Slurm's time limit, and queue the run, which will resume."""
        self._interrupted = True  # The training may be about to start.
        if self._training is not None:
            _end(self._training)
        return DelayedSubmission(replace(self))


class Signals:
    """Notes SIGINT and SIGTERM instead of being ended by them.

    Attributes:
        received: Whether one has arrived.
    """

    def __init__(self) -> None:
        self.received = False

    def _handle(self, number: int, frame: object) -> None:
        self.received = True

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


def _end(training: subprocess.Popen) -> None:
    """End a training, whose last checkpoint remains."""
    training.terminate()
    try:
        training.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        training.kill()
        training.wait()


def _end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent is gone."""
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # 1: PR_SET_PDEATHSIG


def _now(timespec: str = 'seconds') -> str:
    return datetime.now(timezone.utc).isoformat(timespec=timespec)


def _git_revision(folder: Path) -> str | None:
    """Commit of the folder's repository, marked if files differ from it; None if there is none."""
    command = ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--match=']
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
