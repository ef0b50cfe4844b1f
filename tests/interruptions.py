"""Training in a process that is killed at a given point, and what it leaves."""

import builtins
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from mmengine.fileio.backends import local_backend
from mmengine.hooks import RuntimeInfoHook, checkpoint_hook

from mmsmca.checkpoints import safe_globals
from mmsmca.engine.hooks import atomic_checkpoint_hook as atomic_checkpoint


@dataclass(frozen=True)
class Point:
    """Where a run is killed.

    Attributes:
        event: 'iteration' (at its end) or 'write' (half of a file is written).
        number: Which of these events, from 0.
        signal: SIGTERM or SIGKILL.
    """

    event: str
    number: int
    signal: signal.Signals

    def __str__(self) -> str:
        return f'{self.signal.name} at {self.event} {self.number}'


class HalfWritten:
    """A file of which every write stops half way."""

    def __init__(self, file, stop: Callable[[], None]) -> None:
        self.file, self.stop = file, stop

    def __enter__(self):
        return self

    def __exit__(self, *error) -> None:
        self.file.close()

    def __getattr__(self, name: str):
        return getattr(self.file, name)

    def write(self, content: bytes | str) -> None:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        self.stop()
        self.file.write(content[len(content) // 2 :])


def watch(connection: Connection, point: Point | None) -> None:
    """Report the events of this process, and wait at the point where it is to be killed."""
    counts = dict(iteration=0, write=0)

    def report(event: str) -> None:
        number = counts[event]
        counts[event] += 1
        connection.send((event, number))
        if point and (event, number) == (point.event, point.number):
            time.sleep(600)

    def open_watched(file, mode='r', *args, **kwargs):
        opened = builtins.open(file, mode, *args, **kwargs)
        return HalfWritten(opened, lambda: report('write')) if mode.startswith('w') else opened

    for module in (atomic_checkpoint, checkpoint_hook, local_backend):
        module.open = open_watched

    after_iteration = RuntimeInfoHook.after_train_iter

    def report_iteration(*args, **kwargs) -> None:
        after_iteration(*args, **kwargs)
        report('iteration')

    RuntimeInfoHook.after_train_iter = report_iteration


def _run(folder: Path, train: Callable, connection: Connection, point: Point | None) -> None:
    log = os.open(folder / 'log.txt', os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout = open(1, 'w', closefd=False)  # noqa: SIM115
    sys.stderr = open(2, 'w', closefd=False)  # noqa: SIM115
    torch.set_num_threads(1)  # other threads do not survive the fork
    os.chdir(folder)
    watch(connection, point)
    sys.exit(train())


def run(folder: Path, train: Callable, point: Point | None = None):
    """Train in a process of its own, which is killed at ``point`` if it gets there.

    Returns:
        Its exit code, negative for a signal, and the events.
    """
    folder.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context('fork')
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_run, args=(folder, train, theirs, point))
    process.start()
    theirs.close()
    events = []
    with suppress(EOFError):  # until nobody is left to send
        while True:
            events.append(ours.recv())
            if point and events[-1] == (point.event, point.number):
                os.kill(process.pid, point.signal)
                break
    process.join()
    ours.close()
    return process.exitcode, events


def result(folder: Path) -> dict:
    """What a run of four epochs leaves: weights, optimizer, schedules and history of the losses."""
    safe_globals.register()
    checkpoint = torch.load(folder / 'work/epoch_4.pth', weights_only=True)
    history = checkpoint['message_hub']['log_scalars']
    return dict(
        state_dict=checkpoint['state_dict'],
        optimizer=checkpoint['optimizer'],
        param_schedulers=checkpoint['param_schedulers'],
        losses=history['train/loss'].data[0].tolist(),
    )


def equal(a, b) -> bool:
    """Whether two nested structures of tensors and numbers are the same to the bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return a == b


def leftovers(folder: Path) -> list[str]:
    """The checkpoints in a work directory, whole or not."""
    return sorted(path.name for path in folder.glob('work/*.pth*'))
