"""The backbone whose weights pip brings."""

import sys

import pytest
import torch
from mmdet.registry import MODELS

from mmsmca.errors import ConfigError


def build(**options):
    return MODELS.build(dict(type='EfficientNetLite', **options))


def test_maps_have_their_strides_and_channels():
    maps = build(pretrained=False)(torch.zeros(1, 3, 64, 96))
    assert [tuple(x.shape[1:]) for x in maps] == [(40, 8, 12), (112, 4, 6), (320, 2, 3)]
    (single,) = build(pretrained=False, out_indices=[1])(torch.zeros(1, 3, 64, 96))
    assert single.shape == (1, 112, 4, 6)


def test_weights_are_those_of_imagenet_and_the_first_stay():
    torch.manual_seed(0)
    backbone = build().train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    # Filters that were trained; at random, their norms would hardly differ.
    norms = before['stem.0.weight'].flatten(1).norm(dim=1)
    assert norms.std() > 0.3 * norms.mean()
    trained = [p for p in backbone.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=0.1)
    sum(x.square().mean() for x in backbone(torch.randn(2, 3, 64, 64))).backward()
    optimizer.step()
    changed = {key for key, value in backbone.state_dict().items() if value.ne(before[key]).any()}
    assert changed
    assert not [key for key in changed if key.startswith(('stem', 'blocks.0.', 'blocks.2.'))]
    assert not [key for key in changed if '_bn' in key]


def test_missing_packages_and_unknown_maps_are_named(monkeypatch):
    with pytest.raises(ConfigError, match=r'out_indices=\[3\]'):
        build(out_indices=[3])
    monkeypatch.setitem(sys.modules, 'efficientnet_lite_pytorch', None)
    with pytest.raises(ConfigError, match=r"pip install 'mmsmca\[stamps\]'"):
        build()
