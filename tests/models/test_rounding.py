"""Rounding errors of the folded attention, at the size of COCO's images, in every precision.

The output and the gradient of every input, against ``explicit`` in float64 on the same numbers.
"""

import math

import pytest
import torch

from mmsmca.models.layers.attention import (
    IMPLEMENTATIONS,
    Gaussians,
    common_grid,
    level_grids,
    num_prior_channels,
)
from mmsmca.models.layers.box_prior import BoxPrior

IMAGES, HEADS, QUERIES, CHANNELS = 2, 2, 12, 32
STRIDES = (8, 16, 32, 64)
HALF = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


def level_case(grid, scale, padded):
    """SMCA's attention of one level: centres all over the map, scales about ``scale``."""
    height, width = grid
    torch.manual_seed(0)
    queries = (IMAGES, HEADS, QUERIES)
    priors = dict(
        centers=torch.rand(*queries, 2) * torch.tensor([width, height]),
        scales=scale * (0.9 + 0.2 * torch.rand(*queries, 2)),
    )
    mask = torch.zeros(IMAGES, height, width, dtype=torch.bool)
    mask[-1, :, -(width // 10) :] = True
    mask = mask.flatten(1) if padded else None

    def attend(name, query, key, value, centers, scales):
        (level,) = level_grids([grid], mask, centers)
        prior = Gaussians(centers, scales.square() / 8.0)
        return IMPLEMENTATIONS[name](query, key, value, prior, level)

    return attend, priors, (CHANNELS, height * width)


def joint_case(size, side, padded):
    """SMCA-DINO's attention: boxes whose sides are a share of the image's, as training starts."""
    height, width = size
    shapes = [(math.ceil(height / stride), math.ceil(width / stride)) for stride in STRIDES]
    content = torch.tensor([[width, height], [round(width * 0.7), round(height * 0.9)]])
    torch.manual_seed(0)
    boxes = torch.rand(IMAGES, QUERIES, 2)
    boxes = torch.cat((boxes, torch.full_like(boxes, side)), dim=-1)
    place = BoxPrior(HEADS, HEADS, STRIDES)
    with torch.no_grad():
        prior = place(torch.zeros(IMAGES, QUERIES, HEADS), boxes, content.float())
    masks = []
    for (rows, columns), stride in zip(shapes, STRIDES, strict=True):
        x, y = torch.arange(columns) * stride, torch.arange(rows) * stride
        w, h = content.unsqueeze(-1).unbind(1)
        masks.append(((x >= w)[:, None] | (y >= h)[:, :, None]).flatten(1))
    mask = torch.cat(masks, dim=1) if padded else None

    def attend(name, query, key, value, *prior):
        grid = common_grid(shapes, STRIDES, content.to(prior[0].dtype), mask)
        return IMPLEMENTATIONS[name](query, key, value, Gaussians(*prior), grid)

    cells = sum(rows * columns for rows, columns in shapes)
    return attend, prior._asdict(), (CHANNELS - num_prior_channels(len(STRIDES)), cells)


CASES = {
    **{
        f'{height}x{width}, s={scale}': (level_case, (height, width), scale)
        for height, width in ((25, 42), (50, 84), (192, 256))
        for scale in (1, 2, 4, 6)
    },
    **{
        f'800x1333, boxes of {side:.1%}': (joint_case, (800, 1333), side)
        for side in (0.005, 0.01, 0.02, 0.05, 0.2, 1.0)
    },
    '512x4096, boxes of 1.0%': (joint_case, (512, 4096), 0.01),
}
# Whole images too, where that is quick.
WHOLE = [case for case in CASES if case.startswith(('25x42', '50x84', '800x1333, boxes of 1.0%'))]


def results(attend, name, inputs, upstream, dtype):
    """Output and gradients, by name; priors are never in half precision."""
    wide = torch.promote_types(dtype, torch.float32)
    own = {
        key: x.to(dtype if key in ('query', 'key', 'value') else wide).requires_grad_()
        for key, x in inputs.items()
    }
    out = attend(name, *own.values())
    assert out.dtype == dtype
    gradients = torch.autograd.grad(out, list(own.values()), upstream.to(dtype))
    return dict(zip(('output', *own), (out.detach(), *gradients), strict=True))


def errors(actual, expected):
    """Relative errors in the Frobenius norm, by name."""
    return {
        key: ((x.double() - expected[key]).norm() / expected[key].norm()).item()
        for key, x in actual.items()
    }


@pytest.mark.parametrize(
    ('case', 'padded'),
    [(case, True) for case in CASES] + [(case, False) for case in WHOLE],
    ids=lambda x: x if isinstance(x, str) else ('padded' if x else 'whole'),
)
def test_folded_is_right_in_every_precision(case, padded):
    build, *arguments = CASES[case]
    attend, priors, (content, cells) = build(*arguments, padded)
    # Numbers that half precision has: all compute the same.
    query, key, value, upstream = (
        torch.randn(IMAGES, HEADS, *size).bfloat16().half().float()
        for size in ((QUERIES, content), (cells, content), (cells, CHANNELS), (QUERIES, CHANNELS))
    )
    inputs = dict(query=query, key=key, value=value, **priors)
    expected = results(attend, 'explicit', inputs, upstream, torch.float64)
    single = errors(results(attend, 'folded', inputs, upstream, torch.float32), expected)
    assert single.pop('output') < 5e-4
    assert max(single.values()) < 2e-3, single
    for name, dtype in HALF.items():
        folded, explicit = (
            errors(results(attend, way, inputs, upstream, dtype), expected)
            for way in ('folded', 'explicit')
        )
        for key, error in folded.items():
            assert error <= 2 * explicit[key], (name, key, folded, explicit)
