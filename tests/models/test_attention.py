"""Attention under Gaussians: formula, gradients, precision, padding; plain attention."""

import math

import pytest
import torch
from torch import nn

from mmsmca.models.layers.attention import (
    AllLevelsCoAttention,
    CoAttention,
    Gaussians,
    PlainCoAttention,
    common_grid,
    explicit_attention,
    folded_attention,
    level_grids,
    log_prior,
    num_prior_channels,
    plain_attention,
    query_channels,
)
from mmsmca.models.layers.self_attention import SelfAttention

IMAGES, HEADS, QUERIES, CHANNELS = 2, 2, 3, 4
STRIDES = (8, 16, 32)
SHAPES = [(4, 6), (2, 3), (1, 2)]
SIZES = [(48, 32), (21, 17)]  # width and height of the images
IMPLEMENTATIONS = {'explicit': explicit_attention, 'folded': folded_attention}
GRIDS = ['one level', 'all levels']
PADDINGS = ['no padding', 'padding', 'all padding']
both_grids = pytest.mark.parametrize('kind', GRIDS)
both_implementations = pytest.mark.parametrize('name', IMPLEMENTATIONS)
every_padding = pytest.mark.parametrize('padded', PADDINGS)


def padding_of(shapes, strides, padded):
    """True beyond the image; or, for the last image, everywhere."""
    if padded == 'no padding':
        return None
    sizes = [SIZES[0], (0, 0) if padded == 'all padding' else SIZES[1]]
    masks = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        mask = torch.ones(IMAGES, height, width, dtype=torch.bool)
        for image, (w, h) in enumerate(sizes):
            mask[image, : math.ceil(h / stride), : math.ceil(w / stride)] = False
        masks.append(mask.flatten(1))
    return torch.cat(masks, dim=1)


def grid_of(kind, padded='padding', dtype=torch.float64):
    sizes = torch.tensor(SIZES, dtype=torch.promote_types(dtype, torch.float32))
    if kind == 'one level':
        (grid,) = level_grids(SHAPES[:1], padding_of(SHAPES[:1], STRIDES[:1], padded), sizes)
        return grid
    return common_grid(SHAPES, STRIDES, sizes, padding_of(SHAPES, STRIDES, padded))


def inputs_of(kind, dtype=torch.float64, factors=2, images=IMAGES):
    """Random queries, keys, values, and the tensors of the prior."""
    torch.manual_seed(0)
    cells = sum(height * width for height, width in SHAPES[: 1 if kind == 'one level' else 3])
    sizes = [(QUERIES, CHANNELS), (cells, CHANNELS), (cells, CHANNELS)]
    content = [torch.randn(images, HEADS, *size, dtype=torch.float64).to(dtype) for size in sizes]
    prior = [torch.rand(images, HEADS, QUERIES, n, dtype=torch.float64) for n in (2, factors)]
    prior[0] *= torch.tensor([6.0, 4.0])
    if kind == 'all levels':
        prior.append(torch.randn(images, HEADS, QUERIES, len(STRIDES), dtype=torch.float64))
    return [*content, *(x.to(torch.promote_types(dtype, torch.float32)) for x in prior)]


def attend(name, grid, query, key, value, *prior, dropout_p=0.0):
    return IMPLEMENTATIONS[name](query, key, value, Gaussians(*prior), grid, dropout_p)


@pytest.mark.parametrize('factors', [2, 3])
@both_grids
def test_log_prior_is_the_formula(kind, factors):
    """A level of its own counts cells from 0; in the common grid, they lie at their middle."""
    prior, shift = inputs_of(kind, factors=factors)[3:], 0.0 if kind == 'one level' else 0.5
    actual = log_prior(Gaussians(*prior), grid_of(kind))[1, 1, 2]
    (cx, cy), a, *gates = (x[1, 1, 2] for x in prior)
    expected = []
    for level, (height, width) in enumerate(SHAPES[: 1 if kind == 'one level' else 3]):
        for row in range(height):
            for column in range(width):
                dx = (column + shift) * 2**level - cx
                dy = (row + shift) * 2**level - cy
                log_g = -a[0] * dx**2 - a[1] * dy**2
                if factors == 3:
                    log_g -= a[2] * dx**2 * dy**2
                expected.append(log_g + gates[0][level] if gates else log_g)
    torch.testing.assert_close(actual, torch.stack(expected))


@both_grids
def test_channels_are_the_log_prior(kind):
    """But for the first level's gate, which the softmax drops; as many as are set aside."""
    prior, grid = Gaussians(*inputs_of(kind)[3:]), grid_of(kind)
    of_queries = query_channels(prior, grid)
    assert of_queries.size(-1) == grid.channels.size(-1) == num_prior_channels(len(grid.shapes))
    expected = log_prior(prior, grid)
    if prior.gates is not None:
        expected = expected - prior.gates[..., :1]
    actual = of_queries @ grid.channels.transpose(-2, -1)
    content = ~grid.padding[:, None, None].expand_as(actual)
    torch.testing.assert_close(actual[content], expected[content])
    assert (actual[~content] < -1e8).all()


@both_implementations
@both_grids
def test_attends_to_where_the_gaussian_is(kind, name):
    """A sharp Gaussian picks the value of its cell, rows counted by y and columns by x."""
    query, key, value, centers, precisions, *gates = inputs_of(kind)
    centers[:] = torch.tensor([3.0, 1.0]) + (0.5 if kind == 'all levels' else 0.0)
    args = query, key, value, centers, 0 * precisions + 300, *(0 * x for x in gates)
    out = attend(name, grid_of(kind, 'no padding'), *args)
    expected = value[:, :, None, 1 * 6 + 3].expand_as(out)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)


@both_implementations
@both_grids
def test_without_prior_it_is_plain_attention(kind, name):
    query, key, value, *prior = inputs_of(kind)
    grid = grid_of(kind)
    out = attend(name, grid, query, key, value, *(0 * x for x in prior))
    torch.testing.assert_close(out, plain_attention(query, key, value, grid.padding))


@every_padding
@both_grids
def test_implementations_agree(kind, padded):
    args = grid_of(kind, padded), *inputs_of(kind)
    explicit, folded = (attend(name, *args) for name in IMPLEMENTATIONS)
    torch.testing.assert_close(folded, explicit, rtol=0, atol=1e-12)


@every_padding
@pytest.mark.parametrize(('name', 'factors'), [('explicit', 2), ('explicit', 3), ('folded', 2)])
@both_grids
def test_gradients(kind, name, factors, padded):
    args = [x[:, :, :2].requires_grad_() for x in inputs_of(kind, factors=factors)]
    args[1:3] = [x.requires_grad_() for x in inputs_of(kind)[1:3]]
    grid = grid_of(kind, padded)
    assert torch.autograd.gradcheck(lambda *x: attend(name, grid, *x), args, atol=1e-7)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
@both_implementations
def test_a_map_that_is_all_padding_gives_zeros(name, dtype):
    args = [x.requires_grad_() for x in inputs_of('one level', dtype)]
    out = attend(name, grid_of('one level', 'all padding', dtype), *args)
    assert torch.equal(out[-1], torch.zeros_like(out[-1]))
    assert out[0].abs().sum() > 0
    out.float().square().sum().backward()
    for x in args:
        assert torch.isfinite(x.grad).all()
        assert torch.equal(x.grad[-1], torch.zeros_like(x.grad[-1]))


@both_implementations
def test_dropout_keeps_the_mean(name):
    """Dropped weights are made up for: the mean over many draws is what no dropout gives."""
    args, grid = inputs_of('one level', images=1), grid_of('one level', 'no padding')
    expected = attend(name, grid, *args)
    many = [x.expand(4000, *x.shape[1:]) for x in args]
    out = attend(name, grid, *many, dropout_p=0.5)
    assert out.std(0).min() > 0.05
    torch.testing.assert_close(out.mean(0), expected[0], rtol=0, atol=0.1)
    assert not attend(name, grid, *many, dropout_p=1.0).any()


@pytest.mark.parametrize(
    'cls', [SelfAttention, CoAttention, AllLevelsCoAttention, PlainCoAttention]
)
def test_an_empty_batch_with_dropout(cls):
    """Such as a process without images: gradients are zero."""
    module = cls(32, 2, dropout=0.1)
    query, key = torch.randn(0, 5, 32, requires_grad=True), torch.randn(0, 24, 32)
    (grid,) = level_grids(SHAPES[:1], torch.zeros(0, 24, dtype=torch.bool), query)
    prior = Gaussians(torch.zeros(0, 2, 5, 2), torch.zeros(0, 2, 5, 2))
    if cls is SelfAttention:
        out = module(query, query)
    elif cls is CoAttention:
        out = module(query, query, key, key, [prior], [grid], query)
    else:
        out = module(query, query, key, key, prior, grid)
    out.sum().backward()
    assert out.shape == (0, 5, 32)
    assert all(not p.grad.any() for p in module.parameters() if p.grad is not None)


def test_half_precision_is_computed_in_float32():
    """Folded logits are sums of hundreds that cancel."""
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 2, n, 32).bfloat16() for n in (8, 1050, 1050))
    prior = Gaussians(torch.rand(1, 2, 8, 2) * 40, torch.full((1, 2, 8, 2), 4.0))
    (grid,) = level_grids([(25, 42)], None, prior.centers)
    expected = attend('folded', grid, query.float(), key.float(), value.float(), *prior[:2])
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = attend('folded', grid, query, key, value, *prior[:2], dropout_p=1e-9)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-3)


def test_mirrored_map_gives_mirrored_attention():
    """In the common grid nothing but the map's content tells left from right."""
    query, *_, centers, precisions, gates = inputs_of('all levels')
    sizes = torch.tensor([(48, 32)] * 2, dtype=torch.float64)
    shapes = [(4, 6), (2, 3)]
    grid, gates = common_grid(shapes, (8, 16), sizes, None), gates[..., :2]
    maps = [torch.randn(2, IMAGES, HEADS, *shape, 4, dtype=torch.float64) for shape in shapes]
    content = torch.cat([x.flatten(3, 4) for x in maps], dim=3)
    flipped = torch.cat([x.flip(4).flatten(3, 4) for x in maps], dim=3)
    mirrored = torch.stack((6 - centers[..., 0], centers[..., 1]), -1)
    torch.testing.assert_close(
        attend('folded', grid, query, *flipped, mirrored, precisions, gates),
        attend('folded', grid, query, *content, centers, precisions, gates),
    )


# Without a prior ---------------------------------------------------------------------------------


@pytest.mark.parametrize('padded', [False, True])
def test_self_attention_is_torchs(padded):
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    nn.init.normal_(reference.in_proj_bias)
    ours = SelfAttention(16, 4, dropout=0.5).double().eval()
    ours.attn.load_state_dict(reference.state_dict(), strict=True)
    query, pos = torch.randn(2, 2, 7, 16, dtype=torch.float64)
    mask = None
    if padded:
        mask = torch.zeros(2, 7, dtype=torch.bool)
        mask[1, 4:] = True
    position = query + pos
    expected = query + reference(position, position, query, key_padding_mask=mask)[0]
    torch.testing.assert_close(ours(query, pos, mask), expected, rtol=0, atol=1e-12)
    ours.train()
    assert not torch.equal(ours(query, pos), ours(query, pos))


def test_padding_alone_is_finite():
    """Where all is padding the result is not read, but it must not spoil the gradients."""
    attention = SelfAttention(16, 4)
    query = torch.randn(2, 7, 16, requires_grad=True)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1] = True
    out = attention(query, torch.zeros(2, 7, 16), mask)
    out.square().sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(query.grad).all()


def test_plain_co_attention_is_torchs():
    """With all channels of every head for the content, and as MultiheadAttention starts."""
    torch.manual_seed(0)
    plain = PlainCoAttention(64, HEADS).double()
    expected = nn.MultiheadAttention(64, HEADS, batch_first=True, dtype=torch.float64)
    assert plain.attn.in_proj_weight.abs().max() <= (6 / (4 * 64)) ** 0.5
    assert plain.attn.in_proj_weight.std() > 0.05
    expected.load_state_dict(plain.attn.state_dict())
    grid = grid_of('all levels')
    cells = len(grid.coordinates)
    query, query_pos, memory, memory_pos = (
        torch.randn(IMAGES, n, 64, dtype=torch.float64) for n in (QUERIES, QUERIES, cells, cells)
    )
    key = memory + memory_pos
    out = plain(query, query_pos, key, memory, None, grid)
    attended, _ = expected(query + query_pos, key, memory, grid.padding)
    torch.testing.assert_close(out, query + attended)
