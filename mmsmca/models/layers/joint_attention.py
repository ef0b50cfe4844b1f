r"""Gaussian-modulated attention with one softmax over all levels, in two implementations.

==========  =====================================================================================
explicit    adds the prior to the logits, as in the equations: the reference implementation
folded      makes the prior part of the dot product: one call of a fused kernel for all levels,
            with nothing of size Q x N in memory
==========  =====================================================================================

In coordinates that all levels share, with one width for all levels and a gate g per level,

.. math:: \log G_j(x) = g_j - a (x - c)^2

along one axis. The Gaussian is folded as in SMCA (:mod:`.folded_attention`). Only differences
between gates matter, so every level but the first has a channel for its gate: the query holds the
gate relative to the first level's, and the cells of the level hold a one.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .box_prior import JointPrior
from .explicit_attention import biased_attention
from .folded_attention import attend_folded, cell_coordinates, place_origins, prior_channels

# Side of the area that an origin serves, in finest cells: 1,536 pixels at stride 8. As a is at most
# 2, for a box without area, terms stay below 20,000.
REACH = 192


class Cells(NamedTuple):
    """The cells of all levels, as the priors need them.

    Attributes:
        coordinates: Centres (x, y) of the cells, in finest cells, (N, 2); cell i of level j has its
            centre at (i + 0.5) r_j / r_1.
        levels: Index of each cell's level, (N,).
        origins: Origins of the folded prior's coordinates, in finest cells: the middle of each
            image's content, or of parts of it, (B, n, 2).
        padding: True where a cell is padding, (B, N), or None.
        shapes: Height and width of every level, in cells.
    """

    coordinates: Tensor
    levels: Tensor
    origins: Tensor
    padding: Tensor | None
    shapes: Sequence[tuple[int, int]]


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
    origins = place_origins(image_sizes / strides[0], level_shapes[0], REACH)
    return Cells(torch.cat(coordinates), torch.cat(levels), origins, padding, level_shapes)


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
    """Attention under the priors, with materialised priors and attention weights.

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
    """Attention under the priors, computed as plain attention.

    Arguments and result are those of :func:`explicit_joint_attention`.
    """
    channels = joint_prior_channels(prior, cells)
    return attend_folded(query, key, value, *channels, cells.padding, dropout_p)


def num_prior_channels(num_levels: int) -> int:
    """Number of channels of the folded prior: two per axis, one for both, gates and padding.

    Images larger than ``REACH`` finest cells take more, which do not come out of the content's.

    Args:
        num_levels: Number of levels.

    Returns:
        Number of channels per head.
    """
    return 5 + num_levels


def joint_prior_channels(prior: JointPrior, cells: Cells) -> tuple[list[Tensor], list[Tensor]]:
    """Write log priors and gates as a dot product of query channels and cell channels.

    Args:
        prior: Priors of the queries.
        cells: The cells.

    Returns:
        Channels of the queries, (B, M, Q, P_i) each, and of the cells, (B or 1, 1, N, P_i) each.
        Their dot product is :func:`joint_log_prior` minus the gate of the first level.
    """
    of_queries, of_cells = prior_channels(
        prior.centers, prior.precisions, cells.coordinates, cells.origins
    )
    gates = prior.gates[..., 1:] - prior.gates[..., :1]
    of_level = cells.levels[:, None] == torch.arange(1, prior.gates.size(-1), device=gates.device)
    return [*of_queries, gates], [*of_cells, of_level.to(gates.dtype)[None, None]]


IMPLEMENTATIONS = {'explicit': explicit_joint_attention, 'folded': folded_joint_attention}
