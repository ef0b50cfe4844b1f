"""A resumed run goes on as if it had not stopped; if the settings differ, it asks which to use."""

import copy
import logging
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from one_parameter import SGD, config, evaluated

from mmsmca.checkpoints.files import read
from mmsmca.engine.hooks.resume_schedule_hook import read_config
from mmsmca.errors import ConfigError


@dataclass
class Record:
    """Settings of every iteration, and what was said of resuming."""

    lr: list[float] = field(default_factory=list)
    momentum: list[float] = field(default_factory=list)
    weight_decay: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


RECORDS: list[Record] = []


@HOOKS.register_module()
class Spy(Hook):
    def before_run(self, runner) -> None:
        handler = logging.Handler(logging.WARNING)
        handler.emit = lambda record: self.log(record.getMessage())
        RECORDS.append(Record())
        runner.logger.handlers = [handler]

    def log(self, message: str) -> None:
        if any(word in message for word in ('Resumed', 'left')):
            RECORDS[-1].warnings.append(message)

    def before_train_iter(self, runner, *args, **kwargs) -> None:
        for name, values in vars(RECORDS[-1]).items():
            if name != 'warnings':
                values.append(round(runner.optim_wrapper.optimizer.param_groups[0][name], 6))


COSINE = dict(type='CosineAnnealingLR', convert_to_iter_based=True, T_max=4, end=4)
STEPS = dict(type='MultiStepLR', milestones=[3])


def train(cfg: Config) -> Record:
    cfg.custom_hooks = [dict(type='Spy')]
    cfg.experiment_name += str(len(RECORDS))
    Runner.from_cfg(cfg).train()
    return RECORDS[-1]


def resume(cfg: Config, checkpoint: Path, keep: bool | None = None) -> Record:
    cfg.load_from, cfg.resume = str(checkpoint), True
    cfg.default_hooks.schedule = dict(type='mmdet.ResumeScheduleHook', keep=keep)
    return train(cfg)


EVERY_SCHEDULE = {
    'constant': dict(type='ConstantLR', factor=0.5, end=3),
    'cosine': dict(type='CosineAnnealingLR', T_max=4),
    'cosine by iteration': COSINE,
    'restarts': dict(type='CosineRestartLR', periods=[2, 2], restart_weights=[1, 0.5], eta_min=0),
    'exponential': dict(type='ExponentialLR', gamma=0.5),
    'linear': dict(type='LinearLR', by_epoch=False, start_factor=0.1, end=20),
    'steps': STEPS,
    'step': dict(type='StepLR', step_size=2),
    'polynomial': dict(type='PolyLR', by_epoch=False, eta_min=0.1),
    'one cycle': dict(type='OneCycleLR', eta_max=1.0, total_steps=32, by_epoch=False),
    'one linear cycle': dict(
        type='OneCycleLR', eta_max=1.0, total_steps=32, by_epoch=False, anneal_strategy='linear'
    ),
    'quadratic': dict(type='mmdet.QuadraticWarmupLR', by_epoch=False, end=20),
    'momentum': dict(type='CosineAnnealingMomentum', by_epoch=False, T_max=32, eta_min=0.5),
    'weight decay': dict(
        type='LinearParamScheduler', param_name='weight_decay', by_epoch=False, end=32
    ),
}


@pytest.mark.parametrize('schedule', EVERY_SCHEDULE.values(), ids=EVERY_SCHEDULE)
def test_nothing_is_said_or_changed_with_the_same_config(tmp_path: Path, schedule: dict):
    whole = train(config(tmp_path, [schedule]))
    resumed = resume(config(tmp_path / 'resumed', [schedule]), tmp_path / 'epoch_2.pth')
    assert len({*whole.lr} | {*whole.momentum} | {*whole.weight_decay}) > 3
    for name in ('lr', 'momentum', 'weight_decay'):
        assert getattr(resumed, name) == getattr(whole, name)[16:]
    assert not resumed.warnings
    assert read(tmp_path / 'epoch_4.pth')['param_schedulers'][0]['last_step'] > 0


def test_plateau_is_resumed_as_mmengine_saved_it(tmp_path: Path):
    """That is before the evaluation of the epoch."""
    plateau = dict(type='ReduceOnPlateauLR', monitor='mAP', rule='greater', patience=0, factor=0.5)
    validation = dict(train_cfg=dict(by_epoch=True, max_epochs=6), **evaluated(0.0))
    assert train(config(tmp_path, [plateau], **validation)).lr[32::8] == [0.125, 0.0625]
    epoch_4 = tmp_path / 'epoch_4.pth'
    resumed = resume(config(tmp_path / 'resumed', [plateau], **validation), epoch_4)
    assert (resumed.lr[::8], resumed.warnings) == ([0.25, 0.125], [])
    changed = config(tmp_path / 'changed', [plateau | dict(factor=0.1)], **validation)
    with pytest.raises(ConfigError, match='ReduceOnPlateauLR depends on all evaluations'):
        resume(changed, epoch_4, keep=False)


@pytest.fixture(scope='module')
def cosine(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('cosine')
    train(config(folder, [COSINE]))
    return folder / 'epoch_2.pth'


LENGTHS = {
    'larger batches': (4, {}, 'train_dataloader.batch_size 2 -> 4'),
    'smaller batches': (1, {}, 'train_dataloader.batch_size 2 -> 1'),
    'fewer images': (2, dict(dataset=dict(images=8)), 'train_dataloader.dataset.images 16 -> 8'),
    'fewer batches': (
        2, dict(num_batch_per_epoch=4), 'train_dataloader.num_batch_per_epoch None -> 4'
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', LENGTHS.values(), ids=LENGTHS)
def test_epochs_of_another_length(tmp_path: Path, cosine: Path, case: tuple):
    batch_size, data, named = case
    cfg = config(tmp_path, [COSINE], batch_size)
    cfg.merge_from_dict(dict(train_dataloader=data))
    whole = train(copy.deepcopy(cfg))
    half = len(whole.lr) // 2
    with pytest.raises(ConfigError) as refusal:
        resume(copy.deepcopy(cfg), cosine)
    assert f'iterations per epoch 8 -> {half // 2}, {named}' in str(refusal.value)
    assert '--resume-schedule config' in str(refusal.value)
    resumed = resume(copy.deepcopy(cfg), cosine, keep=False)
    assert resumed.lr == whole.lr[half:]
    assert resumed.lr[0] == 0.5
    assert named in resumed.warnings[0]
    # The checkpoint's goes on by its own iterations.
    kept = resume(cfg, cosine, keep=True)
    slow = train(config(tmp_path / 'slow', [COSINE])).lr[16:]
    assert kept.lr[:16] == slow[: len(kept.lr)]


def test_number_of_processes(tmp_path: Path, cosine: Path, monkeypatch):
    """With two, each has half of the images: the config does not say so."""
    monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (0, 2))
    with pytest.raises(ConfigError, match='per epoch 8 -> 4, data or processes differ'):
        resume(config(tmp_path, [COSINE]), cosine)


@pytest.fixture(scope='module')
def steps(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp('steps')
    train(config(folder, [STEPS]))
    return folder / 'epoch_2.pth'


CHANGES = {
    'rate': (dict(optim_wrapper=dict(optimizer=SGD | dict(lr=0.5))), 'optimizer.lr 1.0 -> 0.5'),
    'weight decay': (
        dict(optim_wrapper=dict(optimizer=SGD | dict(weight_decay=0.1))),
        'optim_wrapper.optimizer.weight_decay 0.0001 -> 0.1',
    ),
    'milestones': (
        dict(param_scheduler=[STEPS | dict(milestones=[1])]),
        'param_scheduler.0.milestones [3] -> [1]',
    ),
    'another schedule': (
        dict(param_scheduler=dict(type='ExponentialLR', gamma=0.5)),
        'param_scheduler.0.type MultiStepLR -> ExponentialLR',
    ),
    'one more': (dict(param_scheduler=[STEPS, COSINE]), 'param_scheduler.number 1 -> 2'),
    'longer': (
        dict(train_cfg=dict(by_epoch=True, max_epochs=6)), 'param_scheduler.0.end 4 -> 6'
    ),
    'scaled': (
        dict(auto_scale_lr=dict(enable=True, base_batch_size=4)), 'auto_scale_lr None -> {'
    ),
}  # fmt: skip


@pytest.mark.parametrize('case', CHANGES.values(), ids=CHANGES)
def test_changed_settings(tmp_path: Path, steps: Path, case: tuple):
    changes, named = case
    changes = {'param_scheduler': [STEPS], **changes}
    schedulers = changes.pop('param_scheduler')
    whole = train(config(tmp_path / 'whole', schedulers, **changes))
    with pytest.raises(ConfigError) as refusal:
        resume(config(tmp_path, schedulers, **changes), steps)
    assert named in str(refusal.value) and 'set load_from' in str(refusal.value)
    resumed = resume(config(tmp_path / 'config', schedulers, **changes), steps, keep=False)
    assert (resumed.lr, resumed.weight_decay) == (whole.lr[16:], whole.weight_decay[16:])
    cfg = config(tmp_path / 'checkpoint', schedulers, **changes)
    if '.type' in named or '.number' in named:
        with pytest.raises(ConfigError, match='Restore param_scheduler'):
            resume(cfg, steps, keep=True)
    else:
        kept = resume(cfg, steps, keep=True)
        assert kept.lr[:16] == [1.0] * 8 + [0.1] * 8
        assert set(kept.weight_decay) == {1e-4}


def test_what_no_checkpoint_stores_is_not_asked_for(tmp_path: Path, steps: Path):
    changes = dict(optim_wrapper=dict(optimizer=SGD, clip_grad=dict(max_norm=1)))
    changes |= dict(train_cfg=dict(by_epoch=True, max_epochs=6))
    cfg = config(tmp_path, [STEPS | dict(end=4)], **changes)
    resumed = resume(cfg, steps)
    assert resumed.lr == [1.0] * 8 + [0.1] * 24
    assert resumed.warnings == ['Resumed with train_cfg.max_epochs 4 -> 6.']


def test_state_of_another_optimizer(tmp_path: Path, steps: Path):
    adam = dict(optimizer=dict(type='AdamW', lr=1.0))
    with pytest.raises(ConfigError, match=r'another optimizer .*optimizer.type SGD -> AdamW'):
        resume(config(tmp_path, [STEPS], optim_wrapper=adam), steps, keep=False)
    content = torch.load(steps, weights_only=True)
    content['optimizer']['param_groups'][0]['params'] = [0, 1]
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(ConfigError, match='1 parameter groups of 2 parameters.*without --resume'):
        resume(config(tmp_path, [STEPS]), tmp_path / 'other.pth')


@pytest.mark.parametrize('text', [None, 'a = (', 3])
def test_checkpoint_without_its_config(tmp_path: Path, steps: Path, text):
    content = torch.load(steps, weights_only=True)
    content['meta']['cfg'] = text
    torch.save(content, tmp_path / 'other.pth')
    with pytest.raises(ConfigError, match='meta.cfg of the checkpoint, its config, is missing'):
        resume(config(tmp_path, [STEPS]), tmp_path / 'other.pth')
    assert resume(config(tmp_path, [STEPS]), tmp_path / 'other.pth', keep=True).lr[0] == 1.0


def test_progress_by_iteration(tmp_path: Path, steps: Path):
    def length(number: int) -> dict:
        return dict(train_cfg=dict(by_epoch=False, max_iters=number))

    schedule = [STEPS | dict(by_epoch=False, end=99)]
    train(config(tmp_path, schedule, **length(12)))
    resumed = resume(config(tmp_path / 'short', schedule, **length(8)), tmp_path / 'iter_8.pth')
    said, left = resumed.warnings
    assert said == 'Resumed with train_cfg.max_iters 12 -> 8.'
    assert (
        left.startswith('Nothing is left to train: the checkpoint is from iter 8')
        and not resumed.lr
    )
    with pytest.raises(ConfigError, match='was trained by iteration and does not say'):
        resume(config(tmp_path / 'epochs', schedule), tmp_path / 'iter_8.pth')
    # By iteration from an epoch's checkpoint: sixteen iterations are left.
    cfg = config(tmp_path / 'mixed', [STEPS | dict(end=4)], **length(32))
    resumed = resume(cfg, steps)
    assert len(resumed.lr) == 16
    assert not resumed.warnings


def test_checkpoint_from_within_an_epoch(tmp_path: Path):
    hook = dict(checkpoint=dict(type='CheckpointHook', by_epoch=False, interval=4))
    train(config(tmp_path, [STEPS], default_hooks=hook))
    resumed = resume(config(tmp_path / 'resumed', [STEPS]), tmp_path / 'iter_20.pth')
    assert 'Resumed from within epoch 3, which starts again' in resumed.warnings[0]
    assert len(resumed.lr) == 16


def test_cycle_that_is_too_short(tmp_path: Path):
    cycle = EVERY_SCHEDULE['one cycle']
    train(config(tmp_path, [cycle]))
    short = config(tmp_path / 'short', [cycle | dict(total_steps=8)])
    with pytest.raises(ConfigError, match='param_scheduler ends before iteration 16'):
        resume(short, tmp_path / 'epoch_2.pth', keep=False)


def test_config_is_read_but_not_executed(tmp_path: Path):
    text = f"""
a = dict(b=[1, (2, 'c')], d={{'e-f': dict(g=None)}}, h=-1.5, i=inf)
j = __import__('pathlib').Path({str(tmp_path / 'made')!r}).touch()
k.l = 1
"""
    values = read_config(text)
    assert values['a'] == {'b': [1, [2, 'c']], 'd': {'e-f': {'g': None}}, 'h': -1.5, 'i': 'inf'}
    assert values['j'].startswith('__import__') and len(values) == 2
    assert not (tmp_path / 'made').exists()
