"""Parameter groups of equal settings train as separate ones do."""

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn
from utils import build_detector, load_config


def trained(constructor: str, fused: bool) -> tuple[int, dict]:
    """Number of groups, and the weights after five steps on gradients of random numbers."""
    torch.manual_seed(0)
    model = nn.ModuleDict(
        dict(backbone=nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4)), head=nn.Linear(4, 2))
    )
    model['backbone'][0].bias.requires_grad_(False)
    cfg = dict(
        constructor=constructor,
        optimizer=dict(type='AdamW', lr=0.1, weight_decay=0.1, fused=fused),
        paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1)), norm_decay_mult=0.0),
    )
    wrapper = build_optim_wrapper(model, cfg)
    for _ in range(5):
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.randn_like(parameter)
        wrapper.step()
    return len(wrapper.optimizer.param_groups), model.state_dict()


@pytest.mark.parametrize('fused', [False, True])
def test_groups_of_equal_settings_train_alike(fused):
    """By hand: the backbone's rate and the head's, whose settings come from the optimizer."""
    groups, expected = trained('DefaultOptimWrapperConstructor', fused)
    united, weights = trained('GroupedOptimWrapperConstructor', fused)
    assert (groups, united) == (5, 2)
    for name, weight in weights.items():
        torch.testing.assert_close(weight, expected[name], rtol=0, atol=0)


@pytest.mark.parametrize(
    'name, rates',
    [('smca/smca_r50_8xb2-50e_coco.py', 2), ('smca_dino/smca-dino_r50_8xb2-12e_coco.py', 2)],
)
def test_shipped_configs_have_a_group_a_rate(name, rates):
    cfg = load_config(name)
    detector = build_detector(name)
    groups = build_optim_wrapper(detector, cfg.optim_wrapper).optimizer.param_groups
    assert len(groups) == rates
    trainable = [p for p in detector.parameters() if p.requires_grad]
    assert sum(len(group['params']) for group in groups) == len(trainable)
    assert all(group['fused'] for group in groups)
