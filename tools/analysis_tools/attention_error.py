"""Rounding errors of the co-attentions, against float64 and the prior written out."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from mmsmca.models.layers import attention, joint_attention
from mmsmca.models.layers.box_prior import JointPrior
from mmsmca.models.layers.joint_attention import Cells, num_prior_channels

from . import benchmarks
from .attention_cases import BETA, Setting, random_joint_prior, random_level_prior
from .attention_cost import grid_names


def measure(setting: Setting) -> list[dict]:
    """Errors of both ways to compute a co-attention in the precision of a setting.

    Queries, keys and values are in that precision, the prior is in float32, as autocast has it. The
    reference is ``explicit`` on the same numbers in float64.

    Args:
        setting: What is computed; ``images`` is taken as 1, for the reference's memory.

    Returns:
        A row for ``explicit`` and one for ``folded``: the ``outcome``, and the relative errors (in
        the Frobenius norm) of the output and of the gradient of the priors' centres.
    """
    setting = replace(setting, images=1)
    attend = level_attention(setting) if setting.is_level else joint_level_attention(setting)
    rows = []
    for name in ('explicit', 'folded'):
        row: dict = dict(
            implementation=name,
            grid=grid_names(setting),
            queries=setting.queries,
            dtype=setting.dtype,
        )
        with benchmarks.outcome_in(row):
            output, gradient = attend(name, getattr(torch, setting.dtype))
            expected, expected_gradient = attend('explicit', torch.float64)
            row['output_error'] = relative_error(output, expected)
            row['gradient_error'] = relative_error(gradient, expected_gradient)
        rows.append(row)
    return rows


def level_attention(setting: Setting) -> Callable[[str, torch.dtype], tuple[Tensor, Tensor]]:
    """SMCA's co-attention of one level, on the same numbers in every precision.

    Args:
        setting: With one grid.

    Returns:
        Function of implementation and precision that gives output and gradient of the centres.
    """
    tokens = _random_tokens(setting, setting.channels)
    centers, scales, mask = random_level_prior(setting)
    (grid,) = setting.grids

    def attend(implementation: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        wide = _prior_dtype(dtype)
        own_centers = centers.to(wide).requires_grad_()
        out = attention.IMPLEMENTATIONS[implementation](
            *_cast(tokens, dtype), own_centers, scales.to(wide), grid, BETA, mask
        )
        return out, _gradient(out, own_centers)

    return attend


def joint_level_attention(setting: Setting) -> Callable[[str, torch.dtype], tuple[Tensor, Tensor]]:
    """SMCA-DINO's co-attention of all levels, on the same numbers in every precision.

    Args:
        setting: With several grids.

    Returns:
        Function of implementation and precision that gives output and gradient of the centres.
    """
    taken = num_prior_channels(len(setting.grids))
    tokens = _random_tokens(setting, setting.channels - taken)
    prior, cells = random_joint_prior(setting)

    def attend(implementation: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        wide = _prior_dtype(dtype)
        own = JointPrior(*(x.to(wide) for x in prior))
        own.centers.requires_grad_()
        placed = Cells(
            cells.coordinates.to(wide), cells.levels, cells.origins.to(wide), cells.padding
        )
        out = joint_attention.IMPLEMENTATIONS[implementation](*_cast(tokens, dtype), own, placed)
        return out, _gradient(out, own.centers)

    return attend


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over that of what is expected."""
    return ((actual.double() - expected).norm() / expected.norm()).item()


def _random_tokens(setting: Setting, content: int) -> list[Tensor]:
    """Queries, keys and values that are exact in the setting's precision, in float64."""
    torch.manual_seed(0)
    torch.set_num_threads(setting.threads)
    sizes = [
        (setting.queries, content),
        (setting.num_cells, content),
        (setting.num_cells, setting.channels),
    ]
    dtype = getattr(torch, setting.dtype)
    return [
        torch.randn(1, setting.heads, *size, device=setting.device).to(dtype).double()
        for size in sizes
    ]


def _cast(tokens: list[Tensor], dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    query, key, value = tokens
    return query.to(dtype), key.to(dtype), value.to(dtype)


def _prior_dtype(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _gradient(out: Tensor, centers: Tensor) -> Tensor:
    """Gradient of the centres, for an upstream gradient that is the same in every precision."""
    generator = torch.Generator().manual_seed(1)
    upstream = torch.randn(out.shape, generator=generator).to(out.device)
    (gradient,) = torch.autograd.grad(out, centers, upstream.to(out.dtype))
    return gradient
