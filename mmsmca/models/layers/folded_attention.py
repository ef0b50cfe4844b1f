r"""Gaussian-modulated attention at the price of plain attention: the prior inside the dot product.

With :math:`a = s^2 / \beta` the logarithm of the prior is, along one axis,

.. math:: -a (x - c)^2 = (2 a c) x + (-a) x^2 + (-a c^2) 1

a dot product of what belongs to the query, (2 a c, -a, -a c^2), and what belongs to the key,
(x, x^2, 1): two more channels per axis and one for both, and any fused kernel for plain attention
computes SMCA, with nothing of size Q x H W in memory.

The softmax would drop the last term, which is the same for every key of a query. The arithmetic
needs it: without it the logits of the cells that matter are of the size of a c^2, thousands on a
large map, and what float32 rounds off there is multiplied by c^2 again in the gradient of a. For
the same reason coordinates count from an origin near the query's centre, and half precision is
computed in float32. The errors are in ``docs/performance.md``.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .fused_attention import fused_attention
from .memory import LevelCells
from .precision import widen
from .spatial_prior import LevelPrior

# Logit that takes a key out of the softmax, whatever the prior says.
PADDING = -1e9
# Cells of a side that an origin serves: with s = 6, the summands stay near 10,000.
REACH = 96


def folded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: LevelPrior,
    cells: LevelCells,
    dropout_p: float = 0.0,
) -> Tensor:
    """Gaussian-modulated attention through plain attention.

    Arguments and result are those of :func:`.explicit_attention`; two scales only.
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
    """Plain attention with the channels of a prior, in float32 at least.

    In half precision the kernel would round the gradient of the logits, so that it does not sum to
    zero over a query's keys, and multiply what remains by the squares of the coordinates.

    Args:
        query: (B, M, Q, k).
        key: (B, M, N, k).
        value: (B, M, N, d).
        query_prior: The prior's channels of the queries, (B, M, Q, P_i) each, in float32 at least.
        key_prior: Those of the keys, (B or 1, 1, N, P_i) each.
        key_padding_mask: True where a key is padding, (B, N), or None. It takes a channel: 1 for
            the query, 0 or a large negative number for the key. What an image gets whose keys are
            all padding is finite, and means nothing.
        dropout_p: Probability that an attention weight is dropped.

    Returns:
        Tensor of shape (B, M, Q, d), in the precision of ``value``.
    """
    of_queries, of_keys = list(query_prior), list(key_prior)
    dtype, (batch, heads, num_queries, channels) = of_queries[0].dtype, query.shape
    if key_padding_mask is not None:
        of_queries.append(torch.ones_like(of_queries[0][..., :1]))
        of_keys.append((key_padding_mask * PADDING).to(dtype)[:, None, :, None])
    # Fused kernels want a multiple of eight channels.
    missing = -(channels + sum(x.size(-1) for x in of_queries)) % 8
    of_queries.append(of_queries[0].new_zeros(batch, heads, num_queries, missing))
    of_keys.append(of_keys[0].new_zeros(1, 1, key.size(2), missing))
    # Joined with the prior, queries and keys get its precision. The prior comes first: its summands
    # are large and their sum is small, to which the content is added.
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
    """Place the origins that coordinates count from: every centre has one near it.

    Args:
        sizes: Width and height to be covered, in cells, (B, 2).
        grid_size: Height and width of the map that has them all, padding included. Exported for
            maps of any size, the graph has one origin: it has no gradients, which need more.
        reach: Cells of a side that an origin serves.

    Returns:
        Coordinates (x, y) of the origins, whole numbers: n along either axis, (B, n, 2).
    """
    free = any(isinstance(side, torch.SymInt) for side in grid_size)
    count = 1 if free else math.ceil(max(grid_size) / reach)
    middles = (torch.arange(count, device=sizes.device) + 0.5) / count
    return (sizes[:, None] * middles[:, None]).floor()


def prior_channels(
    centers: Tensor, precisions: Tensor, coordinates: Tensor, origins: Tensor
) -> tuple[list[Tensor], list[Tensor]]:
    """Write the prior as a dot product of a query's and a key's channels.

    Keys have channels for each of the origins, a query for the one that is nearest.

    Args:
        centers: Centres (x, y) of the priors in cells, (B, M, Q, 2).
        precisions: The factors a along x and y, in 1 / squared cells, (B, M, Q, 2).
        coordinates: Those of the keys (x, y), in cells, (N, 2).
        origins: From :func:`place_origins`, (B or 1, n, 2).

    Returns:
        Channels of the queries, (B, M, Q, P_i) each, and of the keys, (B or 1, 1, N, P_i) each,
        4 n + 1 of either. Their products sum up to the logarithm of the prior.
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
    """Coordinates (x, y) of the cells of a grid, row by row, counted 0, 1, ... without a half.

    Args:
        grid_size: Height and width of the feature map, in cells.
        like: Tensor whose dtype and device the coordinates get.

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
