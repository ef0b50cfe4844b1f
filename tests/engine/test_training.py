"""A real training run on generated shapes, and what the quick start says before one."""

import runpy
import statistics

import pytest
import torch
from mmengine.runner import Runner
from runs import small_config
from utils import ROOT

from mmsmca.datasets.shapes import Shapes
from mmsmca.engine.step_time import step_seconds

# Images as large as they are drawn; four iterations per epoch.
SETTINGS = {
    'train_dataloader.dataset.pipeline.2.scale': (64, 64),
    'val_dataloader.dataset.pipeline.1.scale': (64, 64),
    'train_dataloader.batch_size': 4,
    'default_hooks.logger.interval': 1,
}


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes') / 'data'
    Shapes(num_train=16, num_val=4, size=64, max_objects=2, seed=0).write(folder)
    return folder


def test_loss_falls(shapes, tmp_path):
    length = {'train_cfg.max_epochs': 12, 'train_cfg.val_interval': 12}
    cfg = small_config(shapes, work_dir=str(tmp_path), **SETTINGS, **length)
    cfg.param_scheduler = []
    runner = Runner.from_cfg(cfg)
    runner.train()
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 48
    assert losses[-8:].mean() < 0.7 * losses[:4].mean()
    assert 0 <= runner.message_hub.get_scalar('val/coco/bbox_mAP').current() <= 1


def test_quick_start_estimates_its_time_from_a_few_iterations(shapes, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', str(torch.get_num_threads()))
    quickstart = runpy.run_path(str(ROOT / 'tools/quickstart.py'))
    estimate = quickstart['training_minutes']
    measured = []

    def recorded(*args):
        measured.extend(step_seconds(*args))
        return measured

    monkeypatch.setitem(estimate.__globals__, 'step_seconds', recorded)
    cfg = small_config(shapes, **SETTINGS, **{'train_cfg.max_epochs': 5})
    # Twenty iterations, four per epoch.
    assert estimate(cfg) == pytest.approx(20 * statistics.fmean(measured) / 60)
    assert len(measured) == 10 and min(measured) > 0
