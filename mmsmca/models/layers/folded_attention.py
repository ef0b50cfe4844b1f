r"""Gaussian-modulated attention at the cost of plain attention: a prior inside the dot product.

With :math:`a = s^2 / \beta`, the logarithm of the prior is, along one axis,

.. math:: -a (x - c)^2 = (2 a c) x + (-a) x^2 + (-a c^2) 1

a dot product of the query's terms, (2 a c, -a, -a c^2), and the key's terms, (x, x^2, 1). With two
extra channels per axis and one shared by both, any fused kernel for plain attention computes SMCA,
and nothing of size Q x H W is in memory.

The last term is the same for all keys of a query, so the softmax cancels it. Numerical precision
still needs it: without it, the logits of the cells that matter are of the order of a c^2, thousands
on a large map, and the gradient of a multiplies their float32 rounding errors by c^2 again. For the
same reason, coordinates are relative to an origin near the query's centre, and half-precision
inputs are computed in float32. ``docs/performance.md`` lists the errors.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .fused_attention import fused_attention
from .memory import LevelCells
from .precision import widen
from .spatial_prior import LevelPrior

# Logit that excludes a key from the softmax, whatever its prior.
PADDING = -1e9
# Side of the area that an origin serves, in cells: with s = 6, terms stay near 10,000.
REACH = 96


def folded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: LevelPrior,
    cells: LevelCells,
    dropout_p: float = 0.0,
) -> Tensor:
    """Gaussian-modulated attention, computed as plain attention.

    Arguments and result are those of :func:`.explicit_attention`, but for two scales only.
    """
    height, width = cells.shape
    centers, scales = widen(prior.centers), widen(prior.scales)
    origins = place_origins(centers.new_tensor([[width, height]]), cells.shape, REACH)
    coordinates = cell_coordinates(cells.shape, centers)
    channels = prior_channels(centers, scales.square() / prior.beta, coordinates, origins)
    return attend_folded(query, key, value, *channels, cells.padding, dropout_p)


def attend_folded(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    query_prior: Sequence[Tensor],
    key_prior: Sequence[Tensor],
    key_padding_mask: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """Plain attention with extra channels for a prior, at least in float32.

    A half-precision kernel would round the gradients of the logits: they would no longer sum to
    zero over a query's keys, and the remainder would be multiplied by squared coordinates.

    Args:
        query: (B, M, Q, k).
        key: (B, M, N, k).
        value: (B, M, N, d).
        query_prior: Prior channels of the queries, (B, M, Q, P_i) each, at least in float32.
        key_prior: Prior channels of the keys, (B or 1, 1, N, P_i) each.
        key_padding_mask: True where a key is padding, (B, N), or None. It takes one channel: 1 for
            queries, 0 or a large negative number for keys. If all keys of an image are padding, its
            output is finite but meaningless.
        dropout_p: Probability that an attention weight is dropped.

    Returns:
        Tensor of shape (B, M, Q, d), in the precision of ``value``.
    """
    of_queries, of_keys = list(query_prior), list(key_prior)
    dtype, (batch, heads, num_queries, channels) = of_queries[0].dtype, query.shape
    if key_padding_mask is not None:
        of_queries.append(torch.ones_like(of_queries[0][..., :1]))
        of_keys.append((key_padding_mask * PADDING).to(dtype)[:, None, :, None])
    # Fused kernels need a multiple of eight channels.
    missing = -(channels + sum(x.size(-1) for x in of_queries)) % 8
    of_queries.append(of_queries[0].new_zeros(batch, heads, num_queries, missing))
    of_keys.append(of_keys[0].new_zeros(1, 1, key.size(2), missing))
    # Queries and keys take the precision of the prior. The prior comes first: its terms are large,
    # but their sum, to which the content is added, is small.
    with torch.autocast(query.device.type, enabled=False):
        out = fused_attention(
            torch.cat((*of_queries, query.to(dtype) / math.sqrt(channels)), dim=-1),
            torch.cat([*(x.expand(*key.shape[:3], -1) for x in of_keys), key], dim=-1),
            value.to(dtype),
            None,
            dropout_p,
            scale=1.0,
        )
    return out.to(value.dtype)


def place_origins(sizes: Tensor, grid_size: tuple[int, int], reach: int) -> Tensor:
    """Place coordinate origins so that every centre has one nearby.

    Args:
        sizes: Width and height to cover, in cells, (B, 2).
        grid_size: Height and width of the map, padding included. A graph that is exported for maps
            of any size has one origin: only gradients need more.
        reach: Side of the area that an origin serves, in cells.

    Returns:
        Integer coordinates (x, y) of the origins, n along each axis, (B, n, 2).
    """
    free = any(isinstance(side, torch.SymInt) for side in grid_size)
    count = 1 if free else math.ceil(max(grid_size) / reach)
    middles = (torch.arange(count, device=sizes.device) + 0.5) / count
    return (sizes[:, None] * middles[:, None]).floor()


def prior_channels(
    centers: Tensor, precisions: Tensor, coordinates: Tensor, origins: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Write the log prior as a dot product of query channels and key channels.

    There are channels for each origin; a query uses only those of the nearest one.

    Args:
        centers: Centres (x, y) of the priors in cells, (B, M, Q, 2).
        precisions: Factors a along x and y, in 1 / squared cells, (B, M, Q, 2).
        coordinates: Coordinates (x, y) of the keys, in cells, (N, 2).
        origins: From :func:`place_origins`, (B or 1, n, 2).

    Returns:
        Channels of the queries, (B, M, Q, P_i) each, and of the keys, (B or 1, 1, N, P_i) each,
        4 n + 1 in total for either. Their dot product is the logarithm of the prior.
    """
    a, offsets = precisions.unsqueeze(-2), centers.unsqueeze(-2) - origins[:, None, None]
    count = origins.size(1)
    if count > 1:
        nearest = offsets.abs().argmin(-2, keepdim=True)
        a = a * (nearest == torch.arange(count, device=nearest.device)[:, None])
    constant = -(a * offsets.square()).sum((-2, -1))
    x = coordinates[:, None] - origins[:, None, None]
    ones = torch.ones_like(x[..., 0, :1])
    return (
        [(2 * a * offsets).flatten(-2), (-a).expand_as(offsets).flatten(-2), constant[..., None]],
        [x.flatten(-2), x.square().flatten(-2), ones],
    )


def cell_coordinates(grid_size: tuple[int, int], like: Tensor) -> Tensor:
    """Coordinates (x, y) of the cells of a grid, row by row: 0, 1, ..., without a half-cell shift.

    Args:
        grid_size: Height and width of the feature map, in cells.
        like: Tensor that determines dtype and device of the coordinates.

    Returns:
        Tensor of shape (H * W, 2).
    """
    height, width = grid_size
    y, x = torch.meshgrid(
        torch.arange(height, dtype=like.dtype, device=like.device),
        torch.arange(width, dtype=like.dtype, device=like.device),
        indexing='ij',
    )
    return torch.stack((x, y), dim=-1).flatten(0, 1)
