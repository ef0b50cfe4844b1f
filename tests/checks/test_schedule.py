"""A schedule that was made for another length is named before training."""

import pytest
from mmengine.config import Config, ConfigDict
from runs import trial
from utils import ROOT

from mmsmca.checks.schedule import schedule_faults

WARM_UP = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200)
STEP = dict(type='MultiStepLR', by_epoch=True, milestones=[40], gamma=0.1)
CYCLE = dict(type='OneCycleLR', eta_max=0.1, total_steps=5000, by_epoch=False)
COSINE = dict(type='CosineAnnealingLR', T_max=50, by_epoch=True)


def said(loop: dict, iters: int, *schedule: dict) -> list[str]:
    cfg = Config(dict(train_cfg=loop))
    cfg.param_scheduler = [ConfigDict(scheduler) for scheduler in schedule]
    return [str(fault) for fault in schedule_faults(cfg, iters)]


# (epochs, iterations, scheduler, words of the warning or None)
CASES = {
    'warm-up': (11, 400, WARM_UP, None),
    'long warm-up': (11, 88, WARM_UP, 'takes 200 of the 88 iterations'),
    'step in time': (50, 1000, STEP, None),
    'step after the end': (12, 1000, STEP, 'after 40 epochs'),
    'step long before it': (108, 1000, STEP, 'but the training has 108'),
    'cosine': (50, 1000, COSINE, None),
    'cosine after the end': (12, 1000, COSINE, 'after 50 epochs'),
    'cycle after the end': (None, 300, CYCLE, 'after 5000 iterations'),
}


@pytest.mark.parametrize('case', CASES)
def test_schedule(case: str):
    epochs, iters, scheduler, words = CASES[case]
    messages = said(dict(max_epochs=epochs), iters, scheduler)
    assert len(messages) == (words is not None)
    if words:
        assert messages[0].startswith('param_scheduler.0: ') and words in messages[0]


@pytest.mark.parametrize(('images', 'epochs', 'count'), [(2000, 2, 0), (300, 2, 1), (9000, 12, 1)])
def test_quick_start_as_a_base(images: int, epochs: int, count: int):
    """Its schedule follows the number of images; what does not follow is said."""
    cfg = Config.fromfile(ROOT / 'configs/small/smca-dino_r18w16_1xb4-2e_shapes128.py')
    assert 'indices' not in cfg.train_dataloader.dataset
    messages = said(dict(max_epochs=epochs), epochs * images // 4, *cfg.param_scheduler)
    assert len(messages) == count


@pytest.mark.parametrize(('processes', 'iters'), [('1', 6), ('2', 4)])
def test_iterations_are_those_of_the_run(processes: str, iters: int, cfg: Config, monkeypatch):
    """Of three images, each taken twice, in batches of two, for two epochs."""
    monkeypatch.setenv('WORLD_SIZE', processes)
    cfg.merge_from_dict(
        {'train_cfg.max_epochs': 2, 'train_dataloader.batch_size': 2, 'param_scheduler': [WARM_UP]}
    )
    dataset = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = ConfigDict(type='RepeatDataset', times=2, dataset=dataset)
    with pytest.warns(UserWarning, match=f'takes 200 of the {iters} iterations'):
        trial(cfg, 'train')
