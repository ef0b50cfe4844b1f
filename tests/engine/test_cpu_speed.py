"""What makes steps faster changes no result: layout, allocator, groups of the optimizer."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import build_optim_wrapper
from torch import nn
from utils import ROOT, build_detector, load_config

from mmsmca.engine import step_time
from mmsmca.engine.hooks import cpu_speed_hook
from mmsmca.engine.hooks.cpu_speed_hook import GLIBC_VARIABLES, CPUSpeedHook

CONFIG = 'small/smca_r18w16_1xb8-11e_shapes128.py'
# Page faults of ten tensors of 64 MiB, one after the other, when ten were there before: a small
# block in the place of a freed one has the next placed behind it, a few times.
FAULTS = """
import resource, sys, torch
from mmsmca.engine.hooks.cpu_speed_hook import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == 'keep' else None
for i in range(20):
    if i == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def page_faults(argument: str, **environment: str) -> tuple[str, int]:
    """Whether memory is kept, and the page faults of ten large tensors."""
    clean = {key: x for key, x in os.environ.items() if key not in GLIBC_VARIABLES}
    command = [sys.executable, '-c', FAULTS, argument]
    done = subprocess.run(
        command, env={**clean, **environment}, cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    kept, faults = done.stdout.split()
    return kept, int(faults)


@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='about glibc')
def test_freed_memory_is_kept():
    _, without = page_faults('leave')
    kept, faults = page_faults('keep')
    assert kept == 'True' and faults < without / 5
    # Who has said how memory is to be kept is asked.
    kept, faults = page_faults('keep', MALLOC_MMAP_THRESHOLD_='65536')
    assert kept == 'False' and faults > without / 2


def test_layout_of_the_backbone_changes_no_result(monkeypatch):
    monkeypatch.setattr(cpu_speed_hook, 'keep_freed_memory', lambda: True)
    torch.manual_seed(0)
    plain = build_detector(CONFIG).eval()
    hooked = build_detector(CONFIG).eval()
    hooked.load_state_dict(plain.state_dict())
    CPUSpeedHook().before_run(SimpleNamespace(model=hooked))
    weight = hooked.backbone.layer1[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    images = torch.randn(2, 3, 64, 96)
    maps, expected = hooked.extract_feat(images), plain.extract_feat(images)
    for actual, reference in zip(maps, expected, strict=True):
        torch.testing.assert_close(actual, reference, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('hooked', [True, False])
def test_steps_are_timed_as_a_run_makes_them(hooked, monkeypatch):
    """Else equal times would not be: layout and allocator do not serve all detectors alike."""
    sped_up = []
    monkeypatch.setattr(step_time, 'speed_up', sped_up.append)
    config = 'small/smca_r18w16_1xb4-3ki_shapes192.py'
    cfg = load_config(config)
    assert cfg.custom_hooks == [dict(type='CPUSpeedHook')]
    if not hooked:
        cfg.custom_hooks = None
    model = build_detector(config)
    monkeypatch.setattr(step_time.MODELS, 'build', lambda _: model)
    assert step_time.step_seconds(cfg, [], timed=0, warm_up=0) == []
    assert sped_up == [model] * hooked


def test_nothing_happens_where_there_is_an_accelerator(monkeypatch):
    monkeypatch.setattr(cpu_speed_hook, 'get_device', lambda: 'cuda')
    monkeypatch.setattr(cpu_speed_hook, 'keep_freed_memory', pytest.fail)
    backbone = nn.Conv2d(4, 4, 3)
    CPUSpeedHook().before_run(SimpleNamespace(model=nn.ModuleDict(dict(backbone=backbone))))
    assert not backbone.weight.is_contiguous(memory_format=torch.channels_last)


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
