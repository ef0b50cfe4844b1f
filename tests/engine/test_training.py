"""Real training runs on generated shapes, in this process and through mim."""

import runpy
import statistics

import pytest
import torch
from mmengine.runner import Runner
from scripts import run_python
from utils import ROOT, load_config

from mmsmca.datasets.shapes import Shapes
from mmsmca.engine.step_time import step_seconds

CONFIG = 'small/smca_r18w16_1xb8-11e_shapes128.py'


@pytest.fixture(scope='module')
def shapes(tmp_path_factory):
    folder = tmp_path_factory.mktemp('shapes') / 'data'
    Shapes(num_train=16, num_val=4, size=64, max_objects=2, seed=0).write(folder)
    return folder


def options(shapes, max_epochs):
    """Four iterations per epoch, no validation before the end."""
    return {
        'train_dataloader.dataset.data_root': f'{shapes}/',
        'val_dataloader.dataset.data_root': f'{shapes}/',
        'test_dataloader.dataset.data_root': f'{shapes}/',
        'val_evaluator.ann_file': f'{shapes}/annotations/instances_val.json',
        'test_evaluator.ann_file': f'{shapes}/annotations/instances_val.json',
        # As large as they are drawn.
        'train_dataloader.dataset.pipeline.2.scale': (64, 64),
        'val_dataloader.dataset.pipeline.1.scale': (64, 64),
        'test_dataloader.dataset.pipeline.1.scale': (64, 64),
        'train_dataloader.batch_size': 4,
        'train_dataloader.num_workers': 0,
        'train_dataloader.persistent_workers': False,
        'val_dataloader.num_workers': 0,
        'val_dataloader.persistent_workers': False,
        'test_dataloader.num_workers': 0,
        'test_dataloader.persistent_workers': False,
        'train_cfg.max_epochs': max_epochs,
        'train_cfg.val_interval': max_epochs,
        'default_hooks.logger.interval': 1,
    }


def run(shapes, work_dir, max_epochs, resume=False):
    cfg = load_config(CONFIG)
    cfg.merge_from_dict(options(shapes, max_epochs))
    cfg.work_dir, cfg.resume = str(work_dir), resume
    cfg.param_scheduler = []
    cfg.experiment_name = f'{work_dir.name}_{max_epochs}'
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


@pytest.fixture(scope='module')
def trained(shapes, tmp_path_factory):
    work_dir = tmp_path_factory.mktemp('work') / 'trained'
    return run(shapes, work_dir, max_epochs=12), work_dir


def test_loss_falls(trained):
    runner, _ = trained
    losses = runner.message_hub.get_scalar('train/loss').data[0]
    assert len(losses) == 48
    assert losses[-8:].mean() < 0.7 * losses[:4].mean()


def test_evaluates_with_cocos_metric(trained):
    runner, _ = trained
    ap = runner.message_hub.get_scalar('val/coco/bbox_mAP').current()
    assert 0 <= ap <= 1


def test_resume_continues_at_the_same_iteration(trained, shapes):
    before, work_dir = trained
    weights = {k: v.clone() for k, v in before.model.state_dict().items()}
    after = run(shapes, work_dir, max_epochs=13, resume=True)
    assert (before.iter, after.iter) == (48, 52)
    history = after.message_hub.get_scalar('train/loss').data[0]
    assert len(history) == 52  # what was logged before is kept
    steps = {int(s['step']) for s in after.optim_wrapper.optimizer.state_dict()['state'].values()}
    assert steps == {52}
    name = 'decoder.layers.0.spatial_prior.offsets.weight'
    assert not torch.equal(weights[name], after.model.state_dict()[name])


def test_quick_start_estimates_its_time_from_a_few_iterations(shapes, monkeypatch):
    monkeypatch.setenv('OMP_NUM_THREADS', str(torch.get_num_threads()))
    quickstart = runpy.run_path(str(ROOT / 'tools/quickstart.py'))
    estimate = quickstart['training_minutes']
    measured = []

    def recorded(*args):
        measured.extend(step_seconds(*args))
        return measured

    monkeypatch.setitem(estimate.__globals__, 'step_seconds', recorded)
    cfg = load_config(CONFIG)
    cfg.merge_from_dict(options(shapes, max_epochs=5))
    # Twenty iterations, four per epoch.
    assert estimate(cfg) == pytest.approx(20 * statistics.fmean(measured) / 60)
    assert len(measured) == 10 and min(measured) > 0


@pytest.mark.slow
def test_mim_trains_and_tests_from_any_folder(shapes, tmp_path):
    cfg_options = [
        f'{key}={value}'.replace(' ', '') for key, value in options(shapes, max_epochs=1).items()
    ]

    def mim(command, *args):
        words = ('-m', 'mim', command, 'mmsmca', *args, '--cfg-options', *cfg_options)
        done = run_python(*words, cwd=tmp_path)
        return done.stdout + done.stderr

    # By path: a bare name is ambiguous once a run has left its config in the checkout.
    config = str(ROOT / 'configs' / CONFIG)
    log = mim('train', config, '--work-dir', 'run')
    assert 'Epoch(train) [1][4/4]' in log
    log = mim('test', config, '--checkpoint', 'run/epoch_1.pth', '--work-dir', 'run')
    assert 'coco/bbox_mAP:' in log
