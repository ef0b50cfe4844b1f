"""Every config runs: one training step on a padded batch of two small images, one inference."""

import copy
import json
from pathlib import Path

import pytest
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper

CONFIGS = Path(__file__).parents[1] / 'configs'
# Fewer cells than DINO has queries: those of a larger image are not what is tested.
SIZES = [(3, 128, 160), (3, 96, 130)]
MAX_QUERIES = 100


def config_files() -> list[str]:
    files = [path.relative_to(CONFIGS) for path in CONFIGS.rglob('*.py')]
    return sorted(
        str(path) for path in files if path.parts[0] != 'studies' and '_base_' not in path.parts
    )


def without_weights(node: object) -> None:
    """Take out every ``init_cfg`` that would download weights."""
    if isinstance(node, dict):
        if (node.get('init_cfg') or {}).get('type') == 'Pretrained':
            node['init_cfg'] = None
        for child in node.values():
            without_weights(child)
    elif isinstance(node, list):
        for child in node:
            without_weights(child)


def load_config(name: str) -> Config:
    cfg = Config.fromfile(CONFIGS / name)
    without_weights(cfg.model)
    if cfg.model.get('as_two_stage'):
        cfg.model.num_queries = min(cfg.model.num_queries, MAX_QUERIES)
    return cfg


def first_of_a_kind(names: list[str]) -> list[str]:
    """Names of configs of which no earlier one has the same model and optimizer."""
    register_all_modules()
    seen = set()
    unique = []
    for name in names:
        cfg = load_config(name)
        kind = json.dumps([cfg.model, cfg.optim_wrapper], sort_keys=True, default=repr)
        if kind not in seen:
            unique.append(name)
            seen.add(kind)
    return unique


def images(model: torch.nn.Module, cfg: ConfigDict, training: bool) -> dict:
    classes = cfg.bbox_head.num_classes
    data = demo_mm_inputs(2, SIZES, num_items=[2, 1], num_classes=classes, use_box_type=False)
    return model.data_preprocessor(data, training)


@pytest.mark.parametrize('name', first_of_a_kind(config_files()))
def test_trains_a_step_and_predicts(name):
    cfg = load_config(name)
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    model.init_weights()
    model.train()
    losses = model(**images(model, cfg.model, True), mode='loss')
    loss, logged = model.parse_losses(losses)
    assert all(value.isfinite() for value in logged.values())
    loss.backward()
    for parameter_name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, parameter_name
            assert parameter.grad.isfinite().all(), parameter_name
    # The runner of a strategy (FSDP, DeepSpeed) has an optimizer of its own.
    if 'strategy' not in cfg:
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        optim_wrapper.step()
    assert all(parameter.isfinite().all() for parameter in model.parameters())

    model.eval()
    with torch.no_grad():
        results = model(**images(model, cfg.model, False), mode='predict')
    assert len(results) == 2
    for result in results:
        found = result.pred_instances
        assert len(found) == min(cfg.model.test_cfg.max_per_img, len(found)) > 0
        assert found.bboxes.isfinite().all() and found.scores.isfinite().all()
