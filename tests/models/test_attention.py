"""Gaussian-modulated attention: formula, gradients, precision, padding; both implementations."""

import math

import pytest
import torch
import torch.nn.functional as F

from mmsmca.models.layers.attention import gaussian_attention
from mmsmca.models.layers.explicit_attention import gaussian_log_prior
from mmsmca.models.layers.memory import LevelCells
from mmsmca.models.layers.spatial_prior import LevelPrior

IMPLEMENTATIONS = ['explicit', 'folded']
# Images, heads, queries, channels a head, height and width of the map.
SMALL = (2, 2, 3, 4, 3, 5)


def inputs(size, dtype=torch.float64, max_scale=1.5, num_scales=2, seed=0):
    """Random queries, keys, values; centres all over the map, scales up to ``max_scale``."""
    images, heads, queries, channels, height, width = size
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    shape = (images, heads, queries)
    centers = torch.rand(*shape, 2, generator=generator, dtype=torch.float64)
    centers = centers * torch.tensor([width, height])
    scales = max_scale * torch.rand(*shape, num_scales, generator=generator, dtype=torch.float64)
    prior_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    return (
        normal(*shape, channels),
        normal(images, heads, height * width, channels),
        normal(images, heads, height * width, channels),
        centers.to(prior_dtype),
        scales.to(prior_dtype),
    )


def padding_mask(size, columns):
    """True in the last ``columns`` columns of the last image's map."""
    images, *_, height, width = size
    mask = torch.zeros(images, height, width, dtype=torch.bool)
    mask[-1, :, width - columns :] = True
    return mask.flatten(1)


def attend(query, key, value, centers, scales, mask=None, shape=(3, 5), **options):
    prior, cells = LevelPrior(centers, scales, 8.0), LevelCells(shape, mask)
    return gaussian_attention(query, key, value, prior, cells, **options)


@pytest.mark.parametrize('num_scales', [2, 3])
def test_log_prior_is_the_formula(num_scales):
    *_, centers, scales = inputs(SMALL, num_scales=num_scales)
    prior = gaussian_log_prior(LevelPrior(centers, scales, 8.0), (3, 5))
    for head in range(2):
        for query in range(3):
            (cx, cy), s = centers[1, head, query].tolist(), scales[1, head, query].tolist()
            for y in range(3):
                for x in range(5):
                    expected = s[0] ** 2 * (x - cx) ** 2 + s[1] ** 2 * (y - cy) ** 2
                    if num_scales == 3:
                        expected += s[2] ** 2 * (x - cx) ** 2 * (y - cy) ** 2
                    actual = prior[1, head, query, y * 5 + x].item()
                    assert math.isclose(actual, -expected / 8.0, rel_tol=1e-12)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_attends_to_where_the_gaussian_is(implementation):
    """A sharp Gaussian picks the value of its cell, rows counted by y and columns by x."""
    query, key, value, centers, scales = inputs(SMALL)
    centers[:] = torch.tensor([3.0, 1.0], dtype=torch.float64)
    scales[:] = 50.0
    out = attend(query, key, value, centers, scales, implementation=implementation)
    expected = value[:, :, None, 1 * 5 + 3].expand_as(out)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_without_prior_it_is_plain_attention(implementation):
    query, key, value, centers, scales = inputs(SMALL)
    out = attend(query, key, value, centers, 0 * scales, implementation=implementation)
    torch.testing.assert_close(out, F.scaled_dot_product_attention(query, key, value))


@pytest.mark.parametrize('columns', [0, 2, 5], ids=['no padding', 'padding', 'all padding'])
def test_implementations_agree(columns):
    args = inputs(SMALL)
    mask = padding_mask(SMALL, columns) if columns else None
    explicit, folded = [attend(*args, mask, implementation=name) for name in IMPLEMENTATIONS]
    torch.testing.assert_close(folded, explicit, rtol=0, atol=1e-12)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('columns', [0, 2, 5], ids=['no padding', 'padding', 'all padding'])
def test_gradients(implementation, columns):
    args = [x.requires_grad_() for x in inputs((2, 2, 2, 4, 3, 5))]
    mask = padding_mask(SMALL, columns) if columns else None

    def function(*tensors):
        return attend(*tensors, mask, implementation=implementation)

    assert torch.autograd.gradcheck(function, args, atol=1e-7)


def test_covariance_gradients():
    args = [x.requires_grad_() for x in inputs((2, 2, 2, 4, 3, 5), num_scales=3)]
    mask = padding_mask(SMALL, 2)
    assert torch.autograd.gradcheck(lambda *tensors: attend(*tensors, mask), args, atol=1e-7)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16])
def test_a_map_that_is_all_padding_gives_zeros(implementation, dtype):
    args = [x.requires_grad_() for x in inputs(SMALL, dtype)]
    out = attend(*args, padding_mask(SMALL, 5), implementation=implementation)
    assert torch.equal(out[-1], torch.zeros_like(out[-1]))
    assert out[0].abs().sum() > 0
    out.float().square().sum().backward()
    for x in args:
        assert torch.isfinite(x.grad).all()
        assert torch.equal(x.grad[-1], torch.zeros_like(x.grad[-1]))


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_padding_is_cropping(implementation):
    query, key, value, centers, scales = inputs((1, 2, 3, 4, 3, 5))
    mask = padding_mask((1, 2, 3, 4, 3, 5), 2)
    padded = attend(query, key, value, centers, scales, mask, implementation=implementation)
    key, value = [x.unflatten(2, (3, 5))[..., :3, :].flatten(2, 3) for x in (key, value)]
    cropped = attend(
        query, key, value, centers, scales, shape=(3, 3), implementation=implementation
    )
    torch.testing.assert_close(padded, cropped, rtol=0, atol=1e-12)


@pytest.mark.parametrize('implementation', IMPLEMENTATIONS)
def test_dropout_keeps_the_mean(implementation):
    """Dropped weights are made up for: the mean over many draws is what no dropout gives."""
    query, key, value, centers, scales = inputs((1, 1, 1, 4, 3, 5))
    expected = attend(query, key, value, centers, scales)
    torch.manual_seed(0)
    many = [x.expand(4000, *x.shape[1:]) for x in (query, key, value, centers, scales)]
    out = attend(*many, dropout_p=0.5, implementation=implementation)
    assert out.std(0).min() > 0.05
    torch.testing.assert_close(out.mean(0), expected[0], rtol=0, atol=0.1)


@pytest.mark.parametrize('dropout', [1e-9, 1.0])
def test_dropout_of_nothing_and_of_everything(dropout):
    args = [x.requires_grad_() for x in inputs(SMALL)]
    out = attend(*args, dropout_p=dropout)
    expected = attend(*args) * (dropout < 0.5)
    torch.testing.assert_close(out, expected)
    out.sum().backward()
    assert all(x.grad.isfinite().all() for x in args)


def test_dropout_under_autocast_is_in_float32():
    """Folded logits are sums of hundreds that cancel."""
    query, key, value, centers, scales = inputs((1, 2, 8, 32, 25, 42), torch.bfloat16)
    expected = attend(
        query.float(), key.float(), value.float(), centers, 4 + scales, shape=(25, 42)
    )
    with torch.autocast('cpu', dtype=torch.bfloat16):
        out = attend(query, key, value, centers, 4 + scales, shape=(25, 42), dropout_p=1e-9)
    assert out.dtype == torch.bfloat16
    torch.testing.assert_close(out.float(), expected, rtol=1e-2, atol=1e-3)
