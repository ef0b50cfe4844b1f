"""The hook shows what the priors are, and changes no training."""

import json
import math
from types import SimpleNamespace

import pytest
import torch
from mmengine.runner import Runner
from utils import build_detector, load_config

from mmsmca.errors import ConfigError
from mmsmca.visualization.inspection import inspect_image
from mmsmca.visualization.spatial_prior_hook import SpatialPriorHook

SINGLE = 'small/smca_r18w16_1xb8-11e_shapes128.py'
DINO = 'small/smca-dino_r18w16_1xb4-3ki_shapes192.py'
DETR = 'small/detr_r18w16_1xb4-3ki_shapes192.py'


def train(workplace, work_dir, epochs, hook=None, resume=False):
    """Train two iterations per epoch, without validation."""
    cfg = load_config(SINGLE)
    cfg.train_dataloader.dataset.data_root = f'{workplace}/shapes/'
    cfg.train_dataloader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.train_cfg.max_epochs = epochs
    for name in ('val_cfg', 'val_dataloader', 'val_evaluator'):
        cfg[name] = None
    cfg.work_dir, cfg.resume, cfg.param_scheduler = str(work_dir), resume, []
    cfg.experiment_name = f'{work_dir.name}_{epochs}'
    # A process has one visualizer of a name, which writes where the first run did.
    cfg.visualizer.name = f'{work_dir}_{epochs}'
    cfg.custom_hooks = [hook] if hook else []
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_hook_shows_the_priors_and_changes_nothing(workplace, tmp_path):
    image = str(workplace / 'shapes/val/000001.png')
    hook = dict(type='SpatialPriorHook', image=image, interval=3)
    with_hook = train(workplace, tmp_path / 'with', 2, hook)
    without = train(workplace, tmp_path / 'without', 2)
    for name, weight in without.model.state_dict().items():
        assert torch.equal(weight, with_hook.model.state_dict()[name]), name

    pictures = sorted(p.name for p in tmp_path.glob('with/*/vis_data/vis_image/*'))
    assert pictures == [f'spatial_prior_{i}.png' for i in (0, 3, 4)]
    (log,) = tmp_path.glob('with/*/vis_data/scalars.json')
    first = next(line for line in log.read_text().splitlines() if 'spatial_prior' in line)
    scalars = json.loads(first)
    # Scales start at one.
    assert scalars['spatial_prior/layer_0/level_0/scale_x'] == 1
    assert scalars['spatial_prior/layer_2/level_0/offset'] > 0
    assert scalars['spatial_prior/center_spread'] > 0

    resumed = train(workplace, tmp_path / 'with', 3, hook, resume=True)
    (found,) = [h for h in resumed.hooks if isinstance(h, SpatialPriorHook)]
    assert found.history['iterations'].tolist() == [0, 3, 4, 6]
    assert found.history['centers'].shape == (4, 25, 2)
    centers = found.history['centers']
    assert not torch.equal(centers[1], centers[3])


class Kept(list):
    """A visualizer that keeps what it is given."""

    def add_scalars(self, scalars, step):
        self.append((step, scalars))

    def add_image(self, name, image, step):
        self.append((step, name, image))


def fake_runner(config, model, iteration=0):
    return SimpleNamespace(
        cfg=load_config(config), model=model, iter=iteration, max_iters=3, visualizer=Kept()
    )


def test_hook_shows_boxes_and_the_priors_tied_to_them(workplace):
    torch.manual_seed(0)
    model = build_detector(DINO)
    model.init_weights()
    hook = SpatialPriorHook(image=str(workplace / 'shapes/val/000001.png'), interval=2)
    runner = fake_runner(DINO, model)
    hook.before_train(runner)
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.spatial_prior.gates.bias += torch.tensor([9.0, 0, 0]).repeat(8)
            layer.spatial_prior.offsets.bias *= 2
        # The last layer's box is twice as wide as the one that it looks around: half of it.
        for branch in model.bbox_head.reg_branches[:3]:
            branch[-1].bias.zero_()
        model.bbox_head.reg_branches[2][-1].bias[2] = 0.5
    runner.iter = 1
    hook.after_train_iter(runner, 1)

    (at_first, first), _, (later, second), (step, name, image) = runner.visualizer
    assert (at_first, later, step, name) == (0, 2, 2, 'spatial_prior')
    assert image.std() > 10 and image.shape[1] == 900
    for layer in range(3):
        key = f'spatial_prior/layer_{layer}'
        for level in range(3):
            assert first[f'{key}/level_{level}/weight'] == pytest.approx(1 / 3)
        assert second[f'{key}/level_0/weight'] == pytest.approx(1 / (1 + 2 * math.exp(-9)))
        # Half of the heads look along an axis, half between. In float32 an offset is the difference
        # of two places that are many times as large.
        offset = 0.25 * (1 + math.sqrt(2)) / 2
        assert first[f'{key}/offset'] == pytest.approx(offset, rel=1e-5)
        assert second[f'{key}/offset'] == pytest.approx(2 * offset, rel=1e-5)
        assert first[f'{key}/deviation_x'] > 0.25  # the floor is added to it
    assert second['spatial_prior/layer_2/overlap'] < 0.99
    assert hook.history['iterations'].tolist() == [0, 2]
    inspection = inspect_image(model.eval(), hook.pipeline, hook.image)
    boxes = inspection.boxes[inspection.best_queries(10)] / 64
    torch.testing.assert_close(hook.history['boxes'][-1, -1], boxes)
    assert hook.history['boxes'].shape == (2, 4, 10, 4)


def test_history_of_other_curves_is_not_continued(workplace):
    """A resumed training may have another config."""
    hook = SpatialPriorHook(image=str(workplace / 'shapes/val/000001.png'))
    past = dict(iterations=torch.tensor([0]), centers=torch.zeros(1, 25, 2))
    hook.after_load_checkpoint(SimpleNamespace(_resume=True), dict(spatial_prior_history=past))
    hook.before_train(fake_runner(DINO, build_detector(DINO), iteration=4))
    assert hook.history['iterations'].tolist() == [4]


def test_hook_needs_a_spatial_prior(workplace):
    hook = SpatialPriorHook(image=str(workplace / 'shapes/val/000001.png'))
    runner = fake_runner(DETR, build_detector(DETR))
    with pytest.raises(ConfigError, match='no spatial prior'):
        hook.before_train(runner)
