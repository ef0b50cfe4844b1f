"""A schedule that was made for another length is named before training."""

import warnings

import pytest
from mmengine.config import Config, ConfigDict
from utils import ROOT

from mmsmca.checks.schedule import check_schedule

KEY = 'train_dataloader.dataset'
WARM_UP = dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200)
STEP = dict(type='MultiStepLR', by_epoch=True, milestones=[40], gamma=0.1)
CYCLE = dict(type='OneCycleLR', eta_max=0.1, total_steps=5000, by_epoch=False)
COSINE = dict(type='CosineAnnealingLR', T_max=50, by_epoch=True)


def said(images: dict[str, int], loop: dict, *schedule: dict, **loader: object) -> list[str]:
    loader = dict(batch_size=4, dataset=dict(type='CocoDataset')) | loader
    cfg = Config(dict(train_cfg=loop, param_scheduler=schedule, train_dataloader=loader))
    cfg.param_scheduler = [ConfigDict(scheduler) for scheduler in schedule]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        check_schedule(cfg, images)
    return [str(warning.message) for warning in caught]


# name: (numbers of images, loop, scheduler, words of the warning or None, keys of the loader)
CASES = {
    'fits': ({KEY: 2000}, dict(max_epochs=2), WARM_UP, None, {}),
    'few images': ({KEY: 30}, dict(max_epochs=11), WARM_UP, 'takes 200 of the 88 iterations', {}),
    'repeated': (
        {f'{KEY}.dataset': 30},
        dict(max_epochs=11),
        WARM_UP,
        'takes 200 of the 253',
        dict(dataset=dict(type='RepeatDataset', times=3, dataset={})),
    ),
    'joined': (
        {f'{KEY}.datasets.0': 15, f'{KEY}.datasets.1': 15},
        dict(max_epochs=11),
        WARM_UP,
        'takes 200 of the 88',
        dict(dataset=dict(type='ConcatDataset', datasets=[{}, {}])),
    ),
    'unknown number': ({}, dict(max_epochs=11), WARM_UP, None, {}),
    'few iterations': ({}, dict(max_iters=300), WARM_UP, 'takes 200 of the 300 iterations', {}),
    'step after the end': ({}, dict(max_epochs=12), STEP, 'after 40 epochs', {}),
    'step long before it': ({}, dict(max_epochs=108), STEP, 'but the training has 108', {}),
    'step in time': ({}, dict(max_epochs=50), STEP, None, {}),
    'cosine after the end': ({}, dict(max_epochs=12), COSINE, 'after 50 epochs', {}),
    'cosine': ({}, dict(max_epochs=50), COSINE, None, {}),
    'cycle after the end': ({}, dict(max_iters=300), CYCLE, 'after 5000 iterations', {}),
}


@pytest.mark.parametrize('case', CASES)
def test_schedule(case: str):
    images, loop, scheduler, words, loader = CASES[case]
    messages = said(images, loop, scheduler, **loader)
    assert len(messages) == (words is not None)
    if words:
        assert messages[0].startswith('param_scheduler.0: ') and words in messages[0]


@pytest.mark.parametrize(('world', 'count'), [('1', 0), ('8', 1)])
def test_processes_share_the_images(world: str, count: int, monkeypatch):
    monkeypatch.setenv('WORLD_SIZE', world)
    assert len(said({KEY: 2000}, dict(max_epochs=2), WARM_UP)) == count


@pytest.mark.parametrize(('images', 'epochs', 'count'), [(2000, 2, 0), (300, 2, 1), (9000, 12, 1)])
def test_quick_start_as_a_base(images: int, epochs: int, count: int):
    """Its schedule follows the number of images; what does not follow is said."""
    cfg = Config.fromfile(ROOT / 'configs/small/smca-dino_r18w16_1xb4-2e_shapes128.py')
    assert 'indices' not in cfg.train_dataloader.dataset
    messages = said({KEY: images}, dict(max_epochs=epochs), *cfg.param_scheduler)
    assert len(messages) == count
