"""Trainings that are killed and resumed, compared bit for bit with one that ran through.

``python tests/interruptions.py`` tries 20 random points: half of them anywhere in the run, half
while a file is written, renamed or removed; SIGTERM and SIGKILL in turn. ``--mmengine`` tries the
same with MMEngine's hooks and its own resumption, for comparison.
"""

import argparse
import builtins
import logging
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path

import torch
from mmengine.fileio.backends import local_backend
from mmengine.hooks import RuntimeInfoHook, checkpoint_hook
from utils import ROOT, mmdet_script

from mmsmca.checkpoints import safe_globals
from mmsmca.datasets.shapes import Shapes
from mmsmca.engine.hooks import atomic_checkpoint_hook as atomic_checkpoint
from mmsmca.launch import run_tool

EPOCHS = 4
ITERATIONS = 6 * EPOCHS
# Dropout, flips and the order of the images are random, and validation comes between.
CONFIG = """
_base_ = '{base}'
data_root = '{data}/'
train_cfg = dict(max_epochs={epochs}, val_interval=2)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=8),
    dict(type='MultiStepLR', begin=0, end={epochs}, by_epoch=True, milestones=[3], gamma=0.1),
]
layer = dict(
    self_attn_cfg=dict(embed_dims=32, dropout=0.1),
    ffn_cfg=dict(embed_dims=32, feedforward_channels=64, ffn_drop=0.1))
model = dict(
    num_queries=6,
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[64], out_channels=32),
    encoder=dict(num_layers=1, layer_cfg=layer),
    decoder=dict(
        num_layers=2, layer_cfg=dict(cross_attn_cfg=dict(embed_dims=32, dropout=0.1), **layer)),
    positional_encoding=dict(num_feats=16),
    bbox_head=dict(embed_dims=32),
    test_cfg=dict(max_per_img=6))
train_dataloader = dict(batch_size=4, dataset=dict(data_root=data_root), num_workers={workers})
val_dataloader = dict(
    batch_size=4, dataset=dict(data_root=data_root), num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val.json')
test_evaluator = val_evaluator
default_hooks = dict(logger=dict(interval=1))
env_cfg = dict(mp_cfg=dict(mp_start_method='fork'))
"""
MMENGINE = """
default_hooks['checkpoint'] = dict(type='CheckpointHook')
custom_hooks = []
train_dataloader['persistent_workers'] = {persistent}
"""


@dataclass(frozen=True)
class Point:
    """Where a run is killed.

    Attributes:
        event: 'iteration' (at its end), 'write' (half of a file is written), 'rename' or 'remove'
            (it is about to happen).
        number: Which of these events, from 0.
        delay: Seconds after an iteration's end; at the other events the run waits to be killed.
        signal: SIGTERM or SIGKILL.
    """

    event: str
    number: int
    delay: float
    signal: signal.Signals

    def __str__(self) -> str:
        return f'{self.signal.name} at {self.event} {self.number} + {1000 * self.delay:.0f} ms'


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
    counts = dict(iteration=0, write=0, rename=0, remove=0)

    def report(event: str) -> None:
        number = counts[event]
        counts[event] += 1
        connection.send((event, number))
        if event != 'iteration' and point and (event, number) == (point.event, point.number):
            time.sleep(600)

    def open_watched(file, mode='r', *args, **kwargs):
        opened = builtins.open(file, mode, *args, **kwargs)
        return HalfWritten(opened, lambda: report('write')) if mode.startswith('w') else opened

    for module in (atomic_checkpoint, checkpoint_hook, local_backend):
        module.open = open_watched

    def audit(event: str, arguments: tuple) -> None:
        if event in ('os.rename', 'os.remove') and '.pth' in str(arguments[0]):
            report(event.removeprefix('os.'))

    sys.addaudithook(audit)
    after_iteration = RuntimeInfoHook.after_train_iter

    def report_iteration(*args, **kwargs) -> None:
        after_iteration(*args, **kwargs)
        report('iteration')

    RuntimeInfoHook.after_train_iter = report_iteration


def train(folder: Path, config: Path, own: bool = True) -> int | None:
    """Train in ``folder`` with the script, or resume there."""
    os.environ['LOCAL_RANK'] = '0'
    sys.argv = ['train.py', str(config), '--work-dir', str(folder / 'work'), '--resume']
    if not own:
        return mmdet_script('train').main()
    sys.argv.append('--no-trial-step')
    return run_tool('train')


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
                time.sleep(point.delay)
                os.kill(process.pid, point.signal)
                break
    process.join()
    ours.close()
    return process.exitcode, events


def write_config(folder: Path, data: Path, workers: int, own: bool = True) -> Path:
    """Write the config of the small run."""
    text = CONFIG.format(
        base=ROOT / 'configs/small/smca_r18w16_1xb8-11e_shapes128.py',
        data=data,
        epochs=EPOCHS,
        workers=workers,
    )
    if not own:
        text += MMENGINE.format(persistent=workers > 0)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f'workers{workers}.py'
    path.write_text(text)
    return path


def result(folder: Path) -> dict:
    """What a finished run leaves: weights, optimizer, schedules and history of the losses."""
    safe_globals.register()
    checkpoint = torch.load(folder / f'work/epoch_{EPOCHS}.pth', weights_only=True)
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


def random_points(events: list, count: int, seed: int) -> list[Point]:
    """Half of them anywhere, half at a write, rename or removal that an unharmed run reported."""
    rng = random.Random(seed)
    files = [event for event in events if event[0] != 'iteration']
    points = []
    for i in range(count):
        if i % 2:
            event, number, delay = *rng.choice(files), 0.0
        else:
            event, number, delay = 'iteration', rng.randrange(ITERATIONS), rng.uniform(0, 0.1)
        points.append(Point(event, number, delay, (signal.SIGTERM, signal.SIGKILL)[i // 2 % 2]))
    return points


def leftovers(folder: Path) -> list[str]:
    """The checkpoints in a work directory, whole or not."""
    return sorted(path.name for path in folder.glob('work/*.pth*'))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--points', type=int, default=20, help='how many runs are killed')
    parser.add_argument('--seed', type=int, default=0, help='which points are drawn')
    parser.add_argument('--workers', type=int, default=2, help='data loading workers')
    parser.add_argument('--mmengine', action='store_true', help="MMEngine's own hooks")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)
    own = not args.mmengine
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Shapes(24, 4, size=64, max_objects=2, seed=0).write(folder / 'data')
        config = write_config(folder, folder / 'data', args.workers, own)
        exit_code, events = run(
            folder / 'unharmed', partial(train, folder / 'unharmed', config, own)
        )
        assert exit_code == 0, (folder / 'unharmed/log.txt').read_text()
        expected = result(folder / 'unharmed')
        same = 0
        for i, point in enumerate(random_points(events, args.points, args.seed)):
            killed = folder / str(i)
            exit_code, _ = run(killed, partial(train, killed, config, own), point)
            assert exit_code == -point.signal, (exit_code, (killed / 'log.txt').read_text())
            left = leftovers(killed)
            exit_code, resumed = run(killed, partial(train, killed, config, own))
            if exit_code == 0:
                found = result(killed)
                is_same = equal(found, expected)
                difference = max(
                    (found['state_dict'][k] - v).abs().max().item()
                    for k, v in expected['state_dict'].items()
                )
                outcome = 'same to the bit' if is_same else f'weights differ by {difference:.1e}'
            else:
                is_same = False
                outcome = 'not resumed: ' + (killed / 'log.txt').read_text().splitlines()[-1]
            same += is_same
            iterations = sum(event == 'iteration' for event, _ in resumed)
            print(
                f'{str(point):40} left: {", ".join(left) or "nothing"}; '
                f'resumed for {iterations} iterations, {outcome}',
                flush=True,
            )
        print(f'{same} of {args.points} ended as the run that was not killed')


if __name__ == '__main__':
    main()
