"""The encoder's prior against its equation, its start, and attention with the prior in memory."""

import copy
import math

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.config import Config
from utils import ROOT, build_detector, randomise

from mmsmca.models.layers.gaussian_encoder import CellPrior
from mmsmca.models.layers.joint_attention import place_cells
from mmsmca.models.layers.memory import Memory

CONFIG = 'smca/ablation/smca-multi-scale_r50_gaussian-encoder_8xb1-50e_coco.py'
SHAPES = [(8, 10), (4, 5), (2, 3)]
HEADS, CHANNELS = 4, 64


def encoder(implementation='folded', num_layers=2):
    layer_cfg = dict(
        self_attn_cfg=dict(embed_dims=CHANNELS, num_heads=HEADS, implementation=implementation),
        ffn_cfg=dict(embed_dims=CHANNELS, feedforward_channels=32),
    )
    cfg = dict(type='SMCAGaussianEncoder', num_layers=num_layers, num_levels=3)
    torch.manual_seed(0)
    return MODELS.build(dict(cfg, layer_cfg=layer_cfg)).double()


def inputs():
    torch.manual_seed(1)
    shape = (2, sum(height * width for height, width in SHAPES), CHANNELS)
    feat, pos = (torch.randn(shape, dtype=torch.float64) for _ in range(2))
    mask = []
    for (height, width), (h, w) in zip(SHAPES, [(6, 7), (3, 4), (2, 2)], strict=True):
        level = torch.zeros(2, height, width, dtype=torch.bool)
        level[1, h:], level[1, :, w:] = True, True
        mask.append(level.flatten(1))
    return feat, pos, torch.cat(mask, dim=1), SHAPES


def test_prior_is_the_equation():
    """Offsets and widths count in cells of the level that looks."""
    torch.manual_seed(0)
    prior = randomise(CellPrior(HEADS, 3).double())
    size = torch.tensor([[10.0, 8.0]], dtype=torch.float64)
    cells = place_cells(SHAPES, [1, 2, 4], size, None)
    placed = prior(cells)
    number = 0
    for level, (height, width) in enumerate(SHAPES):
        for row in range(height):
            for column in range(width):
                stride = 2**level
                own = torch.tensor([column + 0.5, row + 0.5], dtype=torch.float64) * stride
                torch.testing.assert_close(
                    placed.centers[0, :, number], own + prior.offsets * stride
                )
                sigma2 = (prior.widths.exp() ** 2 + 0.5**2) * stride**2
                torch.testing.assert_close(placed.precisions[0, :, number], 1 / (2 * sigma2))
                torch.testing.assert_close(placed.gates[0, :, number], prior.gates)
                number += 1


def test_folded_is_explicit():
    folded = randomise(encoder())
    explicit = copy.deepcopy(folded)
    for layer in explicit.layers:
        layer.self_attn.implementation = 'explicit'
    feat, pos, mask, shapes = inputs()
    content = ~mask
    for padding in (None, mask):
        memory = Memory(feat, pos, padding, shapes)
        expected, actual = explicit(memory).cells[content], folded(memory).cells[content]
        torch.testing.assert_close(actual, expected, rtol=1e-9, atol=1e-10)


def test_starts_around_the_cell():
    """Whatever the content: heads look one cell or two away, and levels have equal mass."""
    model = build_detector(CONFIG)
    model.init_weights()
    for layer in model.encoder.layers:
        assert (layer.self_attn.query_proj.weight == 0).all()
        offsets = layer.prior.offsets
        assert offsets.abs().amax(-1).tolist() == pytest.approx([1, 2] * 4)
        angles = torch.atan2(offsets[:, 1], offsets[:, 0]).remainder(2 * math.pi)
        torch.testing.assert_close(angles, torch.arange(8) * (math.pi / 4), rtol=0, atol=1e-5)
        torch.testing.assert_close(
            layer.prior.gates.exp(), torch.tensor([1.0, 4.0, 16.0]).expand(8, 3)
        )


def test_a_head_sees_what_its_offset_points_at():
    """A cell far from the border takes most from where its head looks."""
    one = encoder(num_layers=1)
    prior = one.layers[0].prior
    with torch.no_grad():
        prior.offsets.copy_(torch.tensor([[2.0, 0.0]] * HEADS))
        prior.widths.fill_(-10.0)
        prior.gates.copy_(torch.tensor([0.0, -100.0, -100.0]))
    cells = place_cells(SHAPES, [1, 2, 4], torch.tensor([[10.0, 8.0]], dtype=torch.float64), None)
    attention = one.layers[0].self_attn
    feat, pos, _, _ = inputs()
    placed = prior(cells)
    logits = sum(attention.logits(feat[:1], pos[:1], feat[:1] + pos[:1], placed, cells))
    middle = 4 * 10 + 4  # row 4, column 4 of the finest level
    assert (logits[0, :, middle].argmax(-1) == middle + 2).all()


def test_serves_smca_dino():
    """Its start survives the detector's own initialisation."""
    cfg = Config.fromfile(ROOT / 'configs/small/smca-dino_r18w16_1xb4-3ki_shapes192.py').model
    gaussian = Config.fromfile(ROOT / 'configs/studies/encoder_shapes.py').experiments[-1]
    assert gaussian.name == '3gaussian'
    cfg.encoder = dict(gaussian.cfg_options['model.encoder'])
    assert cfg.encoder.pop('_delete_')
    model = MODELS.build(cfg)
    model.init_weights()
    for layer in model.encoder.layers:
        assert (layer.self_attn.query_proj.weight == 0).all()
        assert layer.prior.offsets.abs().amax(-1).tolist() == pytest.approx([1, 2] * 4)
