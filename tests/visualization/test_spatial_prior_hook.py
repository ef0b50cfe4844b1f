"""The hook shows what the priors are, and changes no training."""

import json
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import Runner
from torch import nn
from utils import build_detector, load_config

from mmsmca.errors import ConfigError
from mmsmca.visualization.spatial_prior_hook import SpatialPriorHook

SINGLE = 'small/smca_r18w16_1xb8-11e_shapes128.py'
DINO = 'small/smca-dino_r18w16_1xb4-3ki_shapes192.py'
DETR = 'small/detr_r18w16_1xb4-3ki_shapes192.py'


def train(workplace, work_dir, hooks):
    """Train two epochs of two iterations each, without validation."""
    cfg = load_config(SINGLE)
    cfg.train_dataloader.dataset.data_root = f'{workplace}/shapes/'
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.train_cfg.max_epochs = 2
    for name in ('val_cfg', 'val_dataloader', 'val_evaluator'):
        cfg[name] = None
    cfg.work_dir = cfg.experiment_name = cfg.visualizer.name = str(work_dir)
    cfg.param_scheduler, cfg.custom_hooks = [], hooks
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner.model.state_dict()


def test_hook_shows_the_priors_and_changes_nothing(workplace, tmp_path):
    image = str(workplace / 'shapes/val/000001.png')
    hook = dict(type='SpatialPriorHook', image=image, interval=3)
    with_hook = train(workplace, tmp_path / 'with', [hook])
    for name, weight in train(workplace, tmp_path / 'without', []).items():
        assert torch.equal(weight, with_hook[name]), name
    pictures = sorted(p.name for p in tmp_path.glob('with/*/vis_data/vis_image/*'))
    assert pictures == [f'spatial_prior_{i}.png' for i in (0, 3, 4)]
    (log,) = tmp_path.glob('with/*/vis_data/scalars.json')
    logged = [json.loads(line) for line in log.read_text().splitlines() if 'spatial_prior' in line]
    assert [line['step'] for line in logged] == [0, 3, 4]
    # Scales start at one.
    assert logged[0]['spatial_prior/layer_0/width'] == pytest.approx(1)
    assert logged[0]['spatial_prior/layer_2/offset'] > 0


class Kept(list):
    """A visualizer that keeps what it is given."""

    def add_scalars(self, scalars, step):
        self.append((step, scalars))

    def add_image(self, name, image, step):
        self.append((step, name, image))


def fake_runner(config, model):
    dataset = SimpleNamespace(metainfo={})  # Classes without names.
    return SimpleNamespace(
        cfg=load_config(config),
        model=model,
        iter=0,
        max_iters=3,
        visualizer=Kept(),
        train_dataloader=SimpleNamespace(dataset=dataset),
    )


def test_hook_shows_priors_tied_to_boxes_in_units_of_the_box(workplace):
    torch.manual_seed(0)
    detector = build_detector(DINO)
    detector.init_weights()
    # As within a wrapper for semi-supervised training.
    model = nn.ModuleDict(dict(student=build_detector(DINO), teacher=detector))
    runner = fake_runner(DINO, model)
    hook = SpatialPriorHook(image=str(workplace / 'shapes/val/000001.png'), interval=2)
    hook.before_train(runner)
    with torch.no_grad():
        for layer in detector.decoder.layers:
            layer.spatial_prior.offsets.bias *= 2
    runner.iter = 1
    hook.after_train_iter(runner, 1)
    (at_first, first), _, (later, second), (step, name, image) = runner.visualizer
    assert (at_first, later, step, name) == (0, 2, 2, 'spatial_prior')
    assert image.std() > 10 and image.shape[1] == 900
    for layer in range(3):
        key = f'spatial_prior/layer_{layer}'
        # Half of the heads look along an axis, half between. In float32 an offset is the difference
        # of two places that are many times as large.
        assert first[f'{key}/offset'] == pytest.approx(0.25, rel=1e-4)
        assert second[f'{key}/offset'] == pytest.approx(0.5, rel=1e-4)
        assert first[f'{key}/width'] > 0.25  # The floor is added to it.
    assert detector.training


def test_hook_needs_a_spatial_prior(workplace):
    hook = SpatialPriorHook(image=str(workplace / 'shapes/val/000001.png'))
    with pytest.raises(ConfigError, match='no spatial prior'):
        hook.before_train(fake_runner(DETR, build_detector(DETR)))
