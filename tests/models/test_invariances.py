"""What must not change a result, over sizes, queries, levels and heads drawn by Hypothesis.

The whole detector is not invariant under a flip: its cells are counted 0, 1, ... without a half, so
that the mirror image of a centre in pixels is not that of the centre in cells. The Gaussian and the
co-attention are, and that is what is tested.
"""

import math

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mmdet.registry import MODELS
from utils import batch, load_config, randomise, sample

from mmsmca.models.layers.attention import (
    IMPLEMENTATIONS,
    SCALE_SELECTIONS,
    CoAttention,
    Gaussians,
    level_grids,
    log_prior,
)
from mmsmca.models.layers.spatial_prior import SCALES

# The same examples in every run: a failure is the change's.
FAST = settings(deadline=None, derandomize=True, database=None, max_examples=40)
SLOW = settings(FAST, max_examples=10, suppress_health_check=[HealthCheck.too_slow])

NAMES = st.sampled_from(['explicit', 'folded'])
SELECTIONS = st.sampled_from(SCALE_SELECTIONS)
SEEDS = st.integers(0, 2**32 - 1)
SIDES = st.integers(1, 20)
GRIDS = st.tuples(SIDES, SIDES)
HEADS = st.sampled_from([1, 2, 4, 8, 16])
FLIPS = st.sampled_from(['horizontal', 'vertical', 'transposed'])
QUERIES = st.one_of(st.integers(1, 8), st.integers(1, 900))
ENCODERS = {
    'intra': dict(type='SMCAEncoder', num_layers=1),
    'multi': dict(type='SMCAEncoder', num_layers=1, layer_kinds=['multi']),
    'conv': dict(type='SMCAConvEncoder', num_layers=1),
    'deformable': dict(type='SMCADeformableEncoder', num_layers=1),
}
HYBRID = dict(type='SMCAHybridEncoder', num_convs=1)  # in SMCA-DINO, the others in SMCA
ALL = (*ENCODERS, 'hybrid')


@st.composite
def image_sizes(draw, longest=1333):
    """Height and width from 32 pixels to ``longest``, one up to 20 times the other.

    The shorter side of the most elongated images is less than 32 pixels.
    """
    long = draw(st.integers(32, longest))
    short = draw(st.integers(math.ceil(long / 20), long))
    return draw(st.sampled_from([(long, short), (short, long)]))


class Attention:
    """Random arguments of the attention of one level, in float64."""

    def __init__(self, seed, grid, queries=3, heads=2, images=2, scales=2):
        self.generator = torch.Generator().manual_seed(seed)
        self.grid = height, width = grid
        self.query = self.normal(images, heads, queries, 4)
        self.key, self.value = (self.normal(images, heads, height * width, 4) for _ in range(2))
        self.centers = self.uniform(images, heads, queries, 2) * torch.tensor([width, height])
        self.scales = 2 * self.uniform(images, heads, queries, scales)

    def normal(self, *shape):
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def uniform(self, *shape):
        return torch.rand(*shape, generator=self.generator, dtype=torch.float64)

    def __call__(self, name, mask=None):
        prior, (grid,) = (
            gaussians(self.centers, self.scales),
            level_grids([self.grid], mask, self.key),
        )
        return IMPLEMENTATIONS[name](self.query, self.key, self.value, prior, grid)


def gaussians(centers, scales, beta=8.0):
    return Gaussians(centers, scales.square() / beta)


def prior_at(centers, scales, shape, beta=8.0):
    (grid,) = level_grids([shape], None, centers)
    return log_prior(gaussians(centers, scales, beta), grid)


def rearrange(cells, grid, flip, dim=2):
    """Cells of a grid, row by row along ``dim``, after a flip of the grid."""
    maps = cells.unflatten(dim, grid)
    if flip == 'transposed':
        maps = maps.transpose(dim, dim + 1)
    else:
        maps = maps.flip(dim + (flip == 'horizontal'))
    return maps.flatten(dim, dim + 1)


def rearrange_prior(centers, scales, grid, flip):
    """Centres and scales of the flipped Gaussians."""
    if flip == 'transposed':
        # A third scale belongs to both axes.
        return centers.flip(-1), torch.cat((scales[..., :2].flip(-1), scales[..., 2:]), dim=-1)
    axis = 0 if flip == 'horizontal' else 1
    centers = centers.clone()
    centers[..., axis] = grid[1 - axis] - 1 - centers[..., axis]
    return centers, scales


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9)


@FAST
@given(SEEDS, GRIDS, st.sampled_from([2, 3]), FLIPS)
def test_prior_of_a_flipped_map_is_the_flipped_prior(seed, grid, scales, flip):
    given = Attention(seed, grid, scales=scales)
    expected = prior_at(given.centers, given.scales, grid)
    flipped = rearrange_prior(given.centers, given.scales, grid, flip)
    actual = prior_at(*flipped, grid[::-1] if flip == 'transposed' else grid)
    assert_equal(actual, rearrange(expected, grid, flip, dim=3))


@FAST
@given(SEEDS, GRIDS, st.sampled_from([1, 2, 3]), st.integers(-30, 30), st.integers(-30, 30))
def test_prior_depends_on_the_distance_from_the_centre(seed, grid, factor, right, down):
    """Moved centres see what a larger map shows elsewhere; beta is a unit of squared cells."""
    given = Attention(seed, grid)
    centers = given.centers + torch.tensor([right, down])
    moved = prior_at(centers, given.scales, grid)
    squared = (
        given.scales.square()
        * (
            torch.stack(
                torch.meshgrid(torch.arange(grid[1]), torch.arange(grid[0]), indexing='xy'), -1
            ).flatten(0, 1)[:, None, None, None]
            - centers
        ).square()
    )
    assert_equal(moved, -squared.sum(-1).permute(1, 2, 3, 0) / 8.0)
    assert_equal(prior_at(centers, factor * given.scales, grid, 8.0 * factor**2), moved)


@FAST
@given(SEEDS, GRIDS, SIDES, SIDES, QUERIES, HEADS, NAMES)
def test_padding_is_cropping(seed, content, below, right, queries, heads, implementation):
    height, width = content
    grid = (height + below - 1, width + right - 1)
    attention = Attention(seed, grid, queries, heads, images=1)
    mask = torch.ones(1, *grid, dtype=torch.bool)
    mask[:, :height, :width] = False
    padded = attention(implementation, mask.flatten(1))
    attention.key, attention.value = [
        x.unflatten(2, grid)[:, :, :height, :width].flatten(2, 3)
        for x in (attention.key, attention.value)
    ]
    attention.grid = content
    assert_equal(padded, attention(implementation))


@FAST
@given(SEEDS, GRIDS, QUERIES, HEADS, NAMES)
def test_images_heads_and_queries_do_not_see_each_other(seed, grid, queries, heads, implementation):
    attention = Attention(seed, grid, queries, heads, images=3)
    together = attention(implementation)
    image, head, query = (int(attention.uniform(1) * n) for n in (3, heads, queries))
    one = slice(image, image + 1), slice(head, head + 1)
    attention.key, attention.value = attention.key[one], attention.value[one]
    attention.query, attention.centers, attention.scales = [
        x[one][:, :, query : query + 1]
        for x in (attention.query, attention.centers, attention.scales)
    ]
    assert_equal(attention(implementation), together[one][:, :, query : query + 1])


@FAST
@given(SEEDS, GRIDS, HEADS, NAMES, FLIPS)
def test_attention_to_a_flipped_map(seed, grid, heads, implementation, flip):
    attention = Attention(seed, grid, heads=heads)
    expected = attention(implementation)
    attention.key, attention.value = [
        rearrange(x, grid, flip) for x in (attention.key, attention.value)
    ]
    attention.centers, attention.scales = rearrange_prior(
        attention.centers, attention.scales, grid, flip
    )
    attention.grid = grid[::-1] if flip == 'transposed' else grid
    assert_equal(attention(implementation), expected)


@FAST
@given(SEEDS, st.lists(GRIDS, min_size=1, max_size=4), HEADS, QUERIES, SELECTIONS, FLIPS)
def test_co_attention_to_flipped_levels(seed, grids, heads, queries, selection, flip):
    """Level by level mirrored: centres, content and position encoding of the cells, padding."""
    channels = 16
    torch.manual_seed(seed)
    levels = [Attention(seed, grid, queries, heads) for grid in grids]
    module = CoAttention(channels, heads, num_levels=len(grids), scale_selection=selection)
    module = randomise(module).double()
    query, query_pos, features = (
        torch.randn(2, queries, channels, dtype=torch.float64) for _ in range(3)
    )
    memory, memory_pos = (
        [torch.randn(2, h * w, channels, dtype=torch.float64) for h, w in grids] for _ in range(2)
    )
    # On the coarser levels an image may have nothing but padding.
    masks = [torch.rand(2, h * w) < 0.3 for h, w in grids]
    for mask in masks[:1]:
        mask[:, 0] = False

    def attend(flip):
        def join(cells):
            parts = zip(cells, grids, strict=True)
            return torch.cat(
                [x if flip is None else rearrange(x, g, flip, dim=1) for x, g in parts], dim=1
            )

        priors = [
            gaussians(x.centers, x.scales)
            if flip is None
            else gaussians(*rearrange_prior(x.centers, x.scales, x.grid, flip))
            for x in levels
        ]
        shapes = [grid[::-1] if flip == 'transposed' else grid for grid in grids]
        key = join(memory) + join(memory_pos)
        grids_of_levels = level_grids(shapes, join(masks), query)
        return module(query, query_pos, key, join(memory), priors, grids_of_levels, features)

    assert_equal(attend(flip), attend(None))


# From the neck's maps on -------------------------------------------------------------------------


def build_tiny(seed, num_levels, heads, queries, encoder='intra', selection='learned', scale=None):
    """Detector with 16 channels, one encoder and two decoder layers, random weights."""
    of_detector = 'smca-dino_r18w16_1xb4-2e' if encoder == 'hybrid' else 'smca_r18w16_1xb8-11e'
    cfg = load_config(f'small/{of_detector}_shapes128.py').model
    channels = 16
    cfg.strides = [32 * 2**level for level in range(num_levels)]
    cfg.num_queries = cfg.test_cfg.max_per_img = queries
    cfg.bbox_head.update(embed_dims=channels, num_classes=80)
    cfg.positional_encoding.num_feats = channels // 2
    attention = dict(embed_dims=channels, num_heads=heads, dropout=0.0)
    ffn = dict(embed_dims=channels, feedforward_channels=32)
    cfg.encoder = dict(
        ENCODERS.get(encoder, HYBRID), layer_cfg=dict(self_attn_cfg=attention, ffn_cfg=ffn)
    )
    layer_cfg = dict(
        self_attn_cfg=attention,
        cross_attn_cfg=dict(attention, scale_selection=selection),
        ffn_cfg=ffn,
        spatial_prior_cfg=dict(scale=scale or 'independent', beta=8.0),
    )
    if encoder == 'hybrid':
        cfg.dn_cfg = None  # noise is another for every image
        # The prior takes channels of every head.
        layer_cfg.update(cross_attn_cfg=dict(attention, num_heads=1), spatial_prior_cfg=dict())
    cfg.decoder = dict(num_layers=2, layer_cfg=layer_cfg)
    cfg.backbone.update(
        strides=(1, 2, 2, 2), dilations=(1, 1, 1, 1), base_channels=8, out_indices=(3,)
    )
    cfg.neck = dict(
        type='ChannelMapper',
        in_channels=[64],
        kernel_size=1,
        out_channels=channels,
        act_cfg=None,
        num_outs=num_levels,
    )
    torch.manual_seed(seed)
    return randomise(MODELS.build(cfg)).eval()


@st.composite
def detectors(draw, encoders=tuple(ENCODERS), **fixed):
    """Arguments of :func:`build_tiny`."""
    drawn = dict(
        seed=draw(SEEDS),
        encoder=draw(st.sampled_from(encoders)),
        heads=draw(HEADS),
        queries=draw(QUERIES),
        selection=draw(SELECTIONS),
        scale=draw(st.sampled_from(list(SCALES))),
    )
    drawn['num_levels'] = draw(st.integers(2 if drawn['encoder'] == 'conv' else 1, 4))
    return drawn | fixed


def random_maps(model, images, size):
    """Maps of the neck for a batch padded to ``size``."""
    return [
        torch.randn(images, 16, *(math.ceil(side / s) for side in size), dtype=torch.float64)
        for s in model.strides
    ]


def decode(model, maps, samples):
    """Class logits and boxes of all layers, from the neck's maps."""
    with torch.no_grad():
        return model.bbox_head(**model.forward_transformer(tuple(maps), samples))


@SLOW
@given(detectors(ALL), st.lists(image_sizes(), min_size=2, max_size=3))
def test_an_image_gives_in_a_batch_what_it_gives_alone(arguments, sizes):
    model = build_tiny(**arguments).double()
    padded = tuple(map(max, zip(*sizes, strict=True)))
    maps = random_maps(model, len(sizes), padded)
    together = decode(model, maps, [sample(size, padded) for size in sizes])
    for i, size in enumerate(sizes):
        crops = [
            x[i : i + 1, :, : math.ceil(size[0] / s), : math.ceil(size[1] / s)]
            for x, s in zip(maps, model.strides, strict=True)
        ]
        alone = decode(model, crops, [sample(size, size)])
        for batched, single in zip(together, alone, strict=True):
            # The position encoding is of float32.
            torch.testing.assert_close(batched[:, i : i + 1], single, rtol=0, atol=1e-5)


@SLOW
@given(detectors(ALL), st.lists(image_sizes(longest=640), min_size=1, max_size=2))
def test_order_of_the_queries_does_not_matter(arguments, sizes):
    model = build_tiny(**arguments).double()
    padded = tuple(map(max, zip(*sizes, strict=True)))
    maps, samples = random_maps(model, len(sizes), padded), [sample(s, padded) for s in sizes]
    expected = decode(model, maps, samples)
    order = torch.randperm(arguments['queries'])
    pre_decoder = model.pre_decoder

    def permuted(**memory):
        inputs, of_head = pre_decoder(**memory)
        for name in {'query', 'query_pos', 'reference_points'} & set(inputs):
            inputs[name] = inputs[name][:, order]
        return inputs, of_head

    model.pre_decoder = permuted
    for actual, before in zip(decode(model, maps, samples), expected, strict=True):
        assert_equal(actual, before[:, :, order])


# With the backbone -------------------------------------------------------------------------------


@SLOW
@given(detectors(queries=5), image_sizes(longest=200), st.permutations(range(3)))
def test_order_and_company_of_equally_large_images_do_not_matter(arguments, size, order):
    model = build_tiny(**arguments).double()
    images, samples = batch(size, size, size, dtype=torch.float64)
    with torch.no_grad():
        found = model.predict(images, samples)
        permuted = model.predict(images[order], [samples[i] for i in order])
        alone = model.predict(images[:1], samples[:1])[0]
        losses = model.loss(images, samples)
        losses_permuted = model.loss(images[order], [samples[i] for i in order])
    for actual, expected in [(alone, found[0])] + [
        (permuted[place], found[i]) for place, i in enumerate(order)
    ]:
        for key in ('scores', 'bboxes'):
            torch.testing.assert_close(
                actual.pred_instances[key], expected.pred_instances[key], rtol=0, atol=1e-6
            )
    for name, loss in losses.items():
        torch.testing.assert_close(losses_permuted[name], loss, rtol=1e-8, atol=1e-8, msg=name)


def check_finite(model, sizes):
    images, samples = batch(*sizes)
    losses = model.loss(images, samples)
    sum(losses.values()).backward()
    for name, loss in losses.items():
        assert torch.isfinite(loss).all(), name
    for name, parameter in model.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    with torch.no_grad():
        detections = model.predict(images, samples)
    for (height, width), found in zip(sizes, detections, strict=True):
        boxes = found.pred_instances.bboxes
        assert len(boxes) == model.num_queries
        assert (boxes >= 0).all()
        assert (boxes[:, 0::2] <= width).all() and (boxes[:, 1::2] <= height).all()


@SLOW
@given(detectors(), st.lists(image_sizes(), min_size=1, max_size=2))
def test_any_size_trains_and_detects(arguments, sizes):
    check_finite(build_tiny(**arguments), sizes)


@pytest.mark.parametrize('encoder', ENCODERS)
@pytest.mark.parametrize(
    ('sizes', 'queries', 'heads'),
    [
        ([(32, 32)], 1, 1),
        ([(1333, 67)], 900, 16),
        ([(67, 1333), (640, 32)], 1, 16),
        ([(32, 640), (1, 1)], 900, 1),
    ],
    ids=['smallest', 'upright', 'unlike', 'one pixel'],
)
def test_the_ends_of_the_ranges(encoder, sizes, queries, heads):
    check_finite(build_tiny(0, 4, heads, queries, encoder, 'uniform', 'covariance'), sizes)
