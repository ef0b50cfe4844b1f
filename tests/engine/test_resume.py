"""The same seed gives the same run, also when it is interrupted and resumed."""

import itertools
import os
import random
import shutil
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import interruptions
import numpy as np
import pytest
import torch
from interruptions import Point, equal, leftovers, result, write_config
from mmengine.config import Config
from mmengine.dataset import pseudo_collate
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.optim import LinearLR, MultiStepLR, OptimWrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from mmsmca import launch
from mmsmca.checks.checkpoint import latest_checkpoint
from mmsmca.datasets.shapes import Shapes
from mmsmca.engine.hooks.atomic_checkpoint_hook import AtomicBackend, AtomicCheckpointHook
from mmsmca.engine.hooks.epoch_seed_hook import EpochSeedHook, epoch_seed
from mmsmca.engine.hooks.resume_schedule_hook import ResumeScheduleHook
from mmsmca.errors import ConfigError


@pytest.fixture(scope='module')
def config(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('resume')
    Shapes(num_train=24, num_val=4, size=64, max_objects=2, seed=0).write(folder / 'data')
    return write_config(folder, folder / 'data', workers=2)


def finish(folder: Path, config: Path) -> list:
    """Train to the end, resuming what is there; returns the events."""
    exit_code, events = interruptions.run(folder, config)
    assert exit_code == 0, (folder / 'log.txt').read_text()
    return events


@pytest.fixture(scope='module')
def expected(config: Path) -> dict:
    folder = config.parent / 'unharmed'
    finish(folder, config)
    return result(folder)


def test_same_seed_same_run(expected: dict, config: Path, tmp_path: Path):
    finish(tmp_path, config)
    again = result(tmp_path)
    assert len(again['losses']) == interruptions.ITERATIONS
    assert again['losses'] == expected['losses']
    assert equal(again, expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    'point',
    [
        Point('iteration', 9, 0.0, signal.SIGTERM),
        Point('iteration', 17, 0.02, signal.SIGKILL),
        Point('write', 0, 0.0, signal.SIGKILL),  # of the first checkpoint
        Point('write', 3, 0.0, signal.SIGTERM),  # of `last_checkpoint`, the second time
        Point('rename', 3, 0.0, signal.SIGKILL),  # of an epoch's checkpoint over itself
        Point('remove', 1, 0.0, signal.SIGTERM),
    ],
    ids=str,
)
def test_killed_and_resumed(expected: dict, config: Path, tmp_path: Path, point: Point):
    exit_code, events = interruptions.run(tmp_path, config, point=point)
    assert (exit_code, events[-1]) == (-point.signal, (point.event, point.number))
    left = [name for name in leftovers(tmp_path) if not name.endswith('.partial')]
    for name in left:
        torch.load(tmp_path / 'work' / name, weights_only=False)  # raises if truncated
    resumed = finish(tmp_path, config)
    iterations = sum(event == 'iteration' for event, _ in resumed)
    # Whole epochs are repeated: none that a checkpoint had been written of.
    done = max((int(name.split('_')[1][0]) for name in left if name.startswith('epoch')), default=0)
    per_epoch = interruptions.ITERATIONS // interruptions.EPOCHS
    assert iterations == interruptions.ITERATIONS - done * per_epoch
    assert equal(result(tmp_path), expected)


class Line(BaseModel):
    """The smallest model that trains."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, inputs, mode):
        return dict(loss=self.weight.sum()) if mode == 'loss' else [0]


class Given(BaseMetric):
    """An evaluation with results that are known beforehand."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = iter(values)

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict:
        return dict(mAP=next(self.values))


def small_runner(work_dir: Path, **changes) -> Runner:
    """A runner of two epochs with a better result in the second."""
    data = DataLoader([dict(inputs=torch.zeros(1))], collate_fn=pseudo_collate)
    options = dict(
        model=Line(),
        work_dir=str(work_dir),
        train_dataloader=data,
        val_dataloader=data,
        train_cfg=dict(by_epoch=True, max_epochs=2),
        val_cfg=dict(),
        val_evaluator=[Given([0.1, 0.2])],
        optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
        default_hooks=dict(
            checkpoint=dict(
                type='AtomicCheckpointHook', interval=1, max_keep_ckpts=1, save_best='mAP'
            )
        ),
        default_scope='mmdet',
        log_level='ERROR',
        experiment_name=work_dir.name + str(len(changes)),
    )
    return Runner(**options | changes)


def test_nothing_is_removed_before_its_successor_is_there(tmp_path: Path, monkeypatch):
    there = []
    put = AtomicBackend.put

    def put_watched(self, obj: bytes, filepath: str) -> None:
        there.append(sorted(path.name for path in tmp_path.glob('*.pth')))
        put(self, obj, filepath)

    monkeypatch.setattr(AtomicBackend, 'put', put_watched)
    small_runner(tmp_path).train()
    best_1, best_2 = 'best_mAP_epoch_1.pth', 'best_mAP_epoch_2.pth'
    # Every epoch is written twice: the second time it knows which checkpoint is the best.
    assert there == [
        [],
        ['epoch_1.pth'],
        [best_1, 'epoch_1.pth'],
        [best_1, 'epoch_1.pth'],
        [best_1, 'epoch_2.pth'],
        [best_1, best_2, 'epoch_2.pth'],
    ]
    assert sorted(path.name for path in tmp_path.glob('*.pth*')) == [best_2, 'epoch_2.pth']


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


def test_epoch_seed_reaches_every_generator(tmp_path: Path):
    drawn = []

    class Draw(Hook):
        priority = 'VERY_LOW'

        def before_train_epoch(self, runner) -> None:
            drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))

    def draw(epochs: int) -> list:
        drawn.clear()
        shutil.rmtree(tmp_path)
        loader = dict(
            dataset=[dict(inputs=torch.zeros(1))],
            sampler=dict(type='DefaultSampler'),
            batch_size=1,
        )
        runner = small_runner(
            tmp_path,
            train_dataloader=loader,
            train_cfg=dict(by_epoch=True, max_epochs=epochs),
            val_evaluator=[Given([0.1] * epochs)],
            custom_hooks=[dict(type='EpochSeedHook'), Draw()],
            randomness=dict(seed=3),
            experiment_name=f'draw{epochs}',
        )
        runner.train()
        return list(drawn)

    first, second = draw(2)
    assert all(a != b for a, b in zip(first, second, strict=True))
    assert draw(3)[:2] == [first, second]


def test_workers_that_outlive_the_epoch_are_refused():
    loader = DataLoader([0], num_workers=1, persistent_workers=True)
    with pytest.raises(ValueError, match='persistent_workers=True keeps them .* Set it to False'):
        EpochSeedHook().before_train(SimpleNamespace(train_dataloader=loader))


def save(path: Path, age: int) -> str:
    """Write a checkpoint ``age`` seconds ago."""
    torch.save(dict(state_dict={'weight': torch.zeros(9)}), path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return str(path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_latest_checkpoint(tmp_path: Path, capfd):
    assert latest_checkpoint(str(tmp_path)) is None
    second = save(tmp_path / 'epoch_10.pth', age=2)
    third = save(tmp_path / 'epoch_9.pth', age=1)  # of a run that was begun anew
    save(tmp_path / 'best_mAP_epoch_9.pth', age=0)
    named = tmp_path / 'last_checkpoint'
    assert latest_checkpoint(str(tmp_path)) == third

    named.write_text(second)
    assert latest_checkpoint(str(tmp_path)) == second
    for text in ('', 'moved/epoch_10.pth'):
        named.write_text(text)
        assert latest_checkpoint(str(tmp_path)) == third
    named.write_text('https://example.org/epoch_3.pth')
    assert latest_checkpoint(str(tmp_path)) == 'https://example.org/epoch_3.pth'

    named.write_text(third)
    truncate(Path(third))
    capfd.readouterr()
    assert latest_checkpoint(str(tmp_path)) == second
    assert f'Not resumed from: checkpoint {third} cannot be read: it is' in capfd.readouterr().err
    truncate(Path(second))
    assert latest_checkpoint(str(tmp_path)) == third  # which the checks then refuse


def test_the_script_resumes_from_what_was_checked(tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path('config.py').write_text("work_dir = 'work'")
    Path('work').mkdir()
    good = save(Path('work/epoch_1.pth'), age=1)
    Path('work/last_checkpoint').write_text(save(Path('work/epoch_2.pth'), age=0))
    truncate(Path('work/epoch_2.pth'))
    started: list[Config] = []
    runner = SimpleNamespace(train=lambda: None)
    monkeypatch.setattr(launch.Runner, 'from_cfg', lambda cfg: started.append(cfg) or runner)
    monkeypatch.setattr(launch, 'check_config', lambda cfg, phases: None)
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config.py', '--resume'])
    assert launch.run_tool('train') == 0
    assert (started[0].load_from, started[0].resume) == (good, True)


def trained(lr: float, milestone: int, epochs: int = 0) -> tuple[OptimWrapper, list]:
    """Optimizer and schedulers after epochs of five iterations, stepped as MMEngine does it."""
    first, second = (torch.nn.Parameter(torch.zeros(1)) for _ in range(2))
    groups = [dict(params=[first]), dict(params=[second], lr=lr / 10)]
    wrapper = OptimWrapper(torch.optim.SGD(groups, lr=lr, momentum=0.9))
    schedulers = [
        LinearLR(wrapper, start_factor=0.1, by_epoch=False, begin=0, end=7),
        MultiStepLR(wrapper, milestones=[milestone], gamma=0.1),
    ]
    for _ in range(epochs):
        for _ in range(5):
            schedulers[0].step()
        schedulers[1].step()
    return wrapper, schedulers


@pytest.mark.parametrize('keep', [False, True])
@pytest.mark.parametrize(('lr', 'milestone'), [(1.0, 3), (0.5, 3), (1.0, 1), (0.5, 2)])
def test_resuming_with_another_schedule(monkeypatch, keep: bool, lr: float, milestone: int):
    """It goes on as if it had been trained so, and says what has changed; or keeps the old."""
    before, old = trained(1.0, 3, epochs=2)
    checkpoint = dict(
        meta=dict(epoch=2, iter=10),
        message_hub=dict(runtime_info=dict(max_epochs=3)),
        optimizer=before.state_dict(),
        param_schedulers=[s.state_dict() for s in old],
    )
    runner = Runner.__new__(Runner)
    said: list[str] = []
    runner.logger = SimpleNamespace(warning=said.append)
    runner._resume = True
    monkeypatch.setattr(Runner, 'max_epochs', 3)
    runner.optim_wrapper, runner.param_schedulers = trained(lr, milestone)
    hook = ResumeScheduleHook(keep=keep)
    hook.after_load_checkpoint(runner, checkpoint)
    changed = (lr, milestone) != (1.0, 3)
    assert len(said) == changed
    if changed:
        assert ('lr 1.0 -> 0.5' in said[0]) == (lr == 0.5)
        assert (f'milestones [3] -> [{milestone}]' in said[0]) == (milestone != 3)
        assert f"The {'checkpoint' if keep else 'config'}'s are used" in said[0]
    wanted, schedulers = trained(1.0, 3, epochs=2) if keep else trained(lr, milestone, epochs=2)
    optimizer = checkpoint['optimizer']
    # The last is what MMEngine logs as "base_lr".
    groups = [*optimizer['param_groups'], optimizer['base_param_settings']]
    for group, its in zip(groups, wanted.param_groups, strict=True):
        assert group['lr'] == pytest.approx(its['lr'])
    for state, scheduler in zip(checkpoint['param_schedulers'], schedulers, strict=True):
        assert state['last_step'] == scheduler.last_step
    # Another length is said, and that nothing is left.
    monkeypatch.setattr(Runner, 'max_epochs', 2)
    hook.after_load_checkpoint(runner, checkpoint)
    assert any('max_epochs 3 -> 2' in line for line in said)
    assert any('Nothing is left to train' in line for line in said)
    checkpoint['optimizer']['param_groups'][0]['params'] = [0, 1]
    with pytest.raises(ConfigError, match='parameter groups .*without --resume'):
        hook.after_load_checkpoint(runner, checkpoint)
