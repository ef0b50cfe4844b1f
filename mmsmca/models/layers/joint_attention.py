r"""Gaussian-modulated attention with one softmax over the cells of all levels, two ways.

==========  =====================================================================================
explicit    the prior is a bias of the logits, as the equations write it: the reference
folded      the prior is part of the dot product: one call of the fused kernel for all levels, with
            nothing of size Q x N in memory
==========  =====================================================================================

In coordinates that all levels share, with one width for all of them and a gate a level,

.. math:: \log G_j(x) = g_j - a (x - c)^2 = (2 a c) x + (-a) x^2 + g_j - a c^2

along one axis. The last term is the same for every cell, so the softmax drops it; only differences
of gates matter, so the first level goes without. What is left is a dot product of channels of the
query, (2 a c, -a) an axis, a gate a level, and of the cell, (x, x^2) and a one for its level. One
more channel takes padding out: 1 for the query, 0 or a large negative number for the cell.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .box_prior import JointPrior
from .explicit_attention import biased_attention
from .folded_attention import cell_coordinates, split_precision
from .fused_attention import fused_attention

# Its square takes a cell out of the softmax, and is finite in float16.
PADDING = 240.0


class Cells(NamedTuple):
    """The cells of all levels, as the priors see them.

    Attributes:
        coordinates: Centres (x, y) in finest cells, (N, 2): that of cell i of level j is at
            (i + 0.5) r_j / r_1.
        levels: Number of each cell's level, (N,).
        origins: An integer point near the middle of each image's content, in finest cells, (B, 2).
            It depends on nothing but the content: padding does not change a rounding error.
        padding: True where a cell is padding, (B, N), or None.
    """

    coordinates: Tensor
    levels: Tensor
    origins: Tensor
    padding: Tensor | None


def place_cells(
    level_shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    image_sizes: Tensor,
    padding: Tensor | None,
) -> Cells:
    """Place the cells of all levels in one coordinate system.

    Args:
        level_shapes: Height and width of every level, in cells.
        strides: Stride of every level, in pixels.
        image_sizes: Width and height of each image's content, without padding, in pixels, (B, 2).
        padding: True where a cell is padding, (B, N), or None.

    Returns:
        The cells, one level after the other.
    """
    coordinates = [
        (cell_coordinates(shape, image_sizes) + 0.5) * (stride / strides[0])
        for shape, stride in zip(level_shapes, strides, strict=True)
    ]
    levels = [
        torch.full((height * width,), level, device=image_sizes.device)
        for level, (height, width) in enumerate(level_shapes)
    ]
    origins = (image_sizes / (2 * strides[0])).floor()
    return Cells(torch.cat(coordinates), torch.cat(levels), origins, padding)


def joint_log_prior(prior: JointPrior, cells: Cells) -> Tensor:
    """Logarithm of every query's prior at every cell, gates included.

    Args:
        prior: Priors of the queries.
        cells: The cells.

    Returns:
        Tensor of shape (B, M, Q, N).
    """
    squares = (cells.coordinates - prior.centers.unsqueeze(-2)).square()
    exponents = (prior.precisions.unsqueeze(-2) * squares).sum(-1)
    return prior.gates[..., cells.levels] - exponents


def explicit_joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: JointPrior,
    cells: Cells,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention under the priors, with priors and attention weights in memory.

    Args:
        query: (B, M, Q, k).
        key: Keys of all cells, (B, M, N, k).
        value: (B, M, N, d).
        prior: Priors of the queries.
        cells: The cells.
        dropout_p: Probability that an attention weight is dropped. Defaults to 0.

    Returns:
        Tensor of shape (B, M, Q, d).
    """
    bias = joint_log_prior(prior, cells)
    return biased_attention(query, key, value, bias, cells.padding, dropout_p)


def folded_joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: JointPrior,
    cells: Cells,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention under the priors through plain attention.

    Arguments and result are those of :func:`explicit_joint_attention`.
    """
    scale = 1 / math.sqrt(query.size(-1))
    query_prior, key_prior = joint_prior_channels(prior, cells, query.dtype)
    # The kernel scales all products.
    query = torch.cat((query, query_prior / scale), dim=-1)
    key = torch.cat((key, key_prior.expand(-1, key.size(1), -1, -1)), dim=-1)
    return fused_attention(query, key, value, None, dropout_p, scale)


def num_prior_channels(num_levels: int) -> int:
    """Channels that the folded prior takes in full precision: two an axis, one a level.

    Args:
        num_levels: Number of levels.

    Returns:
        Number of channels of a head.
    """
    return 4 + num_levels


def joint_prior_channels(
    prior: JointPrior, cells: Cells, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Write priors, gates and padding as a dot product of a query's and a cell's channels.

    In half precision every factor becomes a sum of numbers that are exact there, see
    :func:`.folded_attention.prior_channels`.

    Args:
        prior: Priors of the queries.
        cells: The cells.
        dtype: Precision of the attention.

    Returns:
        Channels of the queries, (B, M, Q, P), and of the cells, (B, 1, N, P). Their products sum up
        to :func:`joint_log_prior`, except for a term that depends on the query alone.
    """
    x = cells.coordinates - cells.origins[:, None, None]
    a = prior.precisions
    linear, square = 2 * a * (prior.centers - cells.origins[:, None, None]), -a
    gates = prior.gates[..., 1:] - prior.gates[..., :1]
    of_level = cells.levels[:, None] == torch.arange(1, prior.gates.size(-1), device=x.device)
    of_level = of_level.to(x.dtype).expand(x.size(0), 1, -1, -1)
    ones = torch.ones_like(linear[..., :1])
    padding = x.new_zeros(()).expand(x.size(0), 1, x.size(2), 1)
    if cells.padding is not None:
        padding = cells.padding[:, None, :, None] * -PADDING
    if dtype not in (torch.bfloat16, torch.float16):
        products = [(linear, x), (square, x.square()), (gates, of_level), (ones * PADDING, padding)]
    else:
        linears, squares = split_precision(linear, 3, dtype), split_precision(square, 3, dtype)
        (x_high, x_low), (high, low) = (split_precision(y, 2, dtype) for y in (x, x.square()))
        products = [
            *((part, x_high) for part in linears),
            (linears[0], x_low),
            *((part, high) for part in squares),
            *((part, low) for part in squares[:2]),
            *((part, of_level) for part in split_precision(gates, 2, dtype)),
            (ones * PADDING, padding),
        ]
    of_queries, of_cells = zip(*products, strict=True)
    return torch.cat(of_queries, dim=-1).to(dtype), torch.cat(of_cells, dim=-1).to(dtype)


IMPLEMENTATIONS = {'explicit': explicit_joint_attention, 'folded': folded_joint_attention}
