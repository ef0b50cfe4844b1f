"""The same seed gives the same run, also when it is interrupted and resumed."""

import itertools
import os
import random
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import interruptions
import numpy as np
import pytest
import torch
from interruptions import Point, equal, leftovers, result
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from one_parameter import config, evaluated
from runs import TINY_MODEL, small_config
from torch.utils.data import DataLoader

from mmsmca.datasets.shapes import Shapes
from mmsmca.engine.hooks.atomic_checkpoint_hook import AtomicBackend, AtomicCheckpointHook
from mmsmca.engine.hooks.epoch_seed_hook import EpochSeedHook, epoch_seed
from mmsmca.errors import ConfigError
from mmsmca.launch import run_script


def atomic(folder: Path, *values: float) -> Config:
    """Checkpoints of every epoch, of which one is kept, and the best."""
    checkpoint = dict(
        type='mmdet.AtomicCheckpointHook', interval=1, max_keep_ckpts=1, save_best='mAP'
    )
    return config(
        folder / 'work',
        [dict(type='CosineAnnealingLR', convert_to_iter_based=True, T_max=4)],
        default_hooks=dict(checkpoint=checkpoint),
        custom_hooks=[dict(type='mmdet.EpochSeedHook')],
        **evaluated(*values),
    )


def train(folder: Path) -> None:
    """Train to the end, or resume what is there."""
    cfg = atomic(folder, 0.1)
    cfg.resume = True
    cfg.experiment_name += str(time.time())
    Runner.from_cfg(cfg).train()


@pytest.fixture(scope='module')
def expected(tmp_path_factory) -> dict:
    folder = tmp_path_factory.mktemp('unharmed')
    train(folder)
    return result(folder)


@pytest.mark.parametrize(
    'point',
    [
        Point('iteration', 17, signal.SIGTERM),
        Point('write', 5, signal.SIGKILL),  # of the second checkpoint
        Point('write', 6, signal.SIGKILL),  # of its name in `last_checkpoint`
    ],
    ids=str,
)
def test_killed_and_resumed(expected: dict, tmp_path: Path, point: Point):
    exit_code, events = interruptions.run(tmp_path, partial(train, tmp_path), point)
    assert (exit_code, events[-1]) == (-point.signal, (point.event, point.number))
    left = [name for name in leftovers(tmp_path) if name.endswith('.pth')]
    for name in left:
        torch.load(tmp_path / 'work' / name, weights_only=True)  # raises if truncated
    exit_code, events = interruptions.run(tmp_path, partial(train, tmp_path))
    assert exit_code == 0, (tmp_path / 'log.txt').read_text()
    # Whole epochs are repeated: none that `last_checkpoint` names.
    done = 2 if point.event == 'iteration' else 1
    assert sum(event == 'iteration' for event, _ in events) == 8 * (4 - done)
    assert equal(result(tmp_path), expected)


@pytest.mark.slow
def test_detector_that_is_killed_and_resumed(tmp_path: Path):
    """Through tools/train.py, with dropout, flips, two workers, and validation in between."""
    Shapes(num_train=24, num_val=4, size=64, max_objects=2, seed=0).write(tmp_path / 'data')
    cfg = small_config(tmp_path / 'data', model=TINY_MODEL)
    for part in (cfg.model.encoder, cfg.model.decoder):
        part.layer_cfg.self_attn_cfg.dropout = part.layer_cfg.ffn_cfg.ffn_drop = 0.1
    cfg.train_cfg.update(max_epochs=4, val_interval=2)
    cfg.train_dataloader.update(batch_size=4, num_workers=2)
    cfg.default_hooks.logger.interval = 1
    cfg.dump(tmp_path / 'config.py')

    def train(folder: Path) -> int | None:
        command = ('train.py', tmp_path / 'config.py', '--work-dir', folder / 'work', '--resume')
        sys.argv = [*map(str, command), '--cfg-options', 'runner_type=Runner']
        os.environ['LOCAL_RANK'] = '0'
        return run_script('train')

    results = []
    for name, point in (
        ('killed', Point('iteration', 9, signal.SIGKILL)), ('killed', None), ('whole', None)
    ):  # fmt: skip
        folder = tmp_path / name
        exit_code, events = interruptions.run(folder, partial(train, folder), point)
        assert exit_code == (-signal.SIGKILL if point else 0), (folder / 'log.txt').read_text()
        results += [] if point else [result(folder)]
    assert len(results[0]['losses']) == 24
    assert equal(*results)


def test_nothing_is_removed_before_its_successor_is_there(tmp_path: Path, monkeypatch):
    there = []
    put = AtomicBackend.put

    def put_watched(self, obj: bytes, filepath: str) -> None:
        there.append(sorted(path.name for path in tmp_path.glob('work/*')))
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicBackend, 'put', put_watched)
    cfg = atomic(tmp_path, 0.1, 0.2)
    cfg.train_cfg.max_epochs = 2
    Runner.from_cfg(cfg).train()
    there = [[name for name in names if '.pth' in name or name[:4] == 'last'] for names in there]
    best_1, best_2, last = 'best_mAP_epoch_1.pth', 'best_mAP_epoch_2.pth', 'last_checkpoint'
    # Every epoch is written twice: the second time it knows which checkpoint is the best.
    assert there == [
        [],
        ['epoch_1.pth'],
        ['epoch_1.pth', last],
        [best_1, 'epoch_1.pth', last],
        [best_1, 'epoch_1.pth', last],
        [best_1, 'epoch_1.pth', last],
        [best_1, 'epoch_1.pth', 'epoch_2.pth', last],
        [best_1, 'epoch_2.pth', last],
        [best_1, best_2, 'epoch_2.pth', last],
        [best_1, best_2, 'epoch_2.pth', last],
    ]
    assert leftovers(tmp_path) == [best_2, 'epoch_2.pth']
    assert (tmp_path / 'work' / last).read_text() == str(tmp_path / 'work/epoch_2.pth')


def test_failed_write_leaves_the_predecessor(tmp_path: Path, monkeypatch):
    path = tmp_path / 'a.pth'
    backend = AtomicBackend()
    backend.put(b'before', path)

    def fail(descriptor: int) -> None:
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr(os, 'fsync', fail)
    with pytest.raises(OSError, match='No space left'):
        backend.put(b'after', path)
    assert path.read_bytes() == b'before'


@pytest.mark.parametrize('backend_args', [None, dict(backend='local')])
def test_local_disk_may_be_named(backend_args):
    hook = AtomicCheckpointHook(backend_args=backend_args)
    assert hook.backend_args == dict(backend='AtomicBackend')


def test_other_places_are_refused():
    with pytest.raises(ConfigError, match='backend_args is .*petrel.* Set it to None'):
        AtomicCheckpointHook(backend_args=dict(backend='petrel'))


def test_epoch_seeds_are_unrelated():
    seeds = [epoch_seed(s, e, r) for s in range(3) for e in range(3) for r in range(3)]
    assert len(set(seeds)) == 27
    assert min(abs(a - b) for a, b in itertools.combinations(seeds, 2)) > 1000
    assert all(0 <= seed < 2**31 for seed in seeds)


DRAWN: list[tuple] = []


@HOOKS.register_module()
class Draw(Hook):
    priority = 'VERY_LOW'

    def before_train_epoch(self, runner) -> None:
        DRAWN.append((random.random(), np.random.rand(), torch.rand(1).item()))


def test_epoch_seed_reaches_every_generator(tmp_path: Path):
    for name, epochs in (('short', 2), ('long', 3)):
        cfg = config(tmp_path / name, train_cfg=dict(by_epoch=True, max_epochs=epochs))
        cfg.custom_hooks = [dict(type='mmdet.EpochSeedHook'), dict(type='Draw')]
        Runner.from_cfg(cfg).train()
    assert len(set(DRAWN)) == 3 and DRAWN[:2] == DRAWN[2:4]


def test_workers_that_outlive_the_epoch_are_refused():
    loader = DataLoader([0], num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match='persistent_workers=True keeps them .* Set it to False'):
        EpochSeedHook().before_train(SimpleNamespace(train_dataloader=loader))
