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

import torch
import torch.nn.functional as F  # noqa: N812
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
    query_prior: Tensor,
    key_prior: Tensor,
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
        query_prior: The prior's channels of the queries, (B, M, Q, P), in float32 at least.
        key_prior: Those of the keys, (B or 1, 1, N, P).
        key_padding_mask: True where a key is padding, (B, N), or None. It takes a channel: 1 for
            the query, 0 or a large negative number for the key. What an image gets whose keys are
            all padding is finite, and means nothing.
        dropout_p: Probability that an attention weight is dropped.

    Returns:
        Tensor of shape (B, M, Q, d), in the precision of ``value``.
    """
    if key_padding_mask is not None:
        query_prior = F.pad(query_prior, (0, 1), value=1.0)
        padding = (key_padding_mask * PADDING).to(key_prior.dtype)[:, None, :, None]
        key_prior = torch.cat((key_prior.expand(padding.size(0), -1, -1, -1), padding), dim=-1)
    channels = query.size(-1)
    # Fused kernels want a multiple of eight channels.
    missing = -(channels + query_prior.size(-1)) % 8
    query_prior, key_prior = (F.pad(x, (0, missing)) for x in (query_prior, key_prior))
    # Joined with the prior, queries and keys get its precision. The prior comes first: its summands
    # are large and their sum is small, to which the content is added.
    with torch.autocast(query.device.type, enabled=False):
        scaled = query.to(query_prior.dtype) / math.sqrt(channels)
        out = fused_attention(
            torch.cat((query_prior, scaled), dim=-1),
            torch.cat((key_prior.expand(*key.shape[:3], -1), key), dim=-1),
            value.to(query_prior.dtype),
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
) -> tuple[Tensor, Tensor]:
    """Write the prior as a dot product of a query's and a key's channels.

    Keys have channels for each of the origins, a query for the one that is nearest.

    Args:
        centers: Centres (x, y) of the priors in cells, (B, M, Q, 2).
        precisions: The factors a along x and y, in 1 / squared cells, (B, M, Q, 2).
        coordinates: Those of the keys (x, y), in cells, (N, 2).
        origins: From :func:`place_origins`, (B or 1, n, 2).

    Returns:
        Channels of the queries, (B, M, Q, 4 n + 1), and of the keys, (B or 1, 1, N, 4 n + 1). Their
        products sum up to the logarithm of the prior.
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
        torch.cat(
            (
                (2 * a * offsets).flatten(-2),
                (-a).expand_as(offsets).flatten(-2),
                constant[..., None],
            ),
            dim=-1,
        ),
        torch.cat((x.flatten(-2), x.square().flatten(-2), ones), dim=-1),
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
    return torch.stack((x.flatten(), y.flatten()), dim=-1)
