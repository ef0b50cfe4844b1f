r"""Gaussian-modulated attention at the price of plain attention: the prior inside the dot product.

With :math:`a = s^2 / \beta` the logarithm of the prior is, along one axis,

.. math:: -a (x - c)^2 = (2 a c) x + (-a) x^2 - a c^2

The last term is the same for every key of a query, so the softmax drops it. The others are a dot
product of what belongs to the query, (2 a c, -a), and what belongs to the key, (x, x^2): two more
channels an axis, and any fused kernel for plain attention computes SMCA, with nothing of size
Q x H W in memory.
"""

import math

import torch
from torch import Tensor

from .fused_attention import fused_attention


def folded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    centers: Tensor,
    scales: Tensor,
    grid_size: tuple[int, int],
    beta: float,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Gaussian-modulated attention through plain attention.

    Arguments and result are those of :func:`.gaussian_attention`; two scales only.
    """
    channels = query.size(-1)
    # The kernel divides every product by the root of the channels; beta makes up for it.
    query_prior, key_prior = prior_channels(
        centers, scales, grid_size, beta / math.sqrt(channels), query.dtype
    )
    images, heads, cells = key.shape[:3]
    folded_query = torch.cat((query, query_prior), dim=-1)
    folded_key = torch.cat((key, key_prior.expand(images, heads, cells, -1)), dim=-1)
    out = fused_attention(
        folded_query, folded_key, value, key_padding_mask, dropout_p, 1 / math.sqrt(channels)
    )
    if key_padding_mask is None:
        return out
    return out.masked_fill(key_padding_mask.all(dim=1)[:, None, None, None], 0.0)


def prior_channels(
    centers: Tensor, scales: Tensor, grid_size: tuple[int, int], beta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Write the prior as a dot product of a query's and a key's channels.

    Half precision does not hold the summands, which reach hundreds and cancel. There every factor
    becomes a sum of numbers that are exact in half precision (x is: an integer), and the fused
    kernel's float32 accumulation adds their products up.

    Args:
        centers: Centres (x, y) of the priors in cells, (B, M, Q, 2).
        scales: Scales of the priors before squaring, (B, M, Q, 2).
        grid_size: Height and width of the feature map, in cells.
        beta: Bandwidth of the priors, in squared cells.
        dtype: Precision of the attention.

    Returns:
        Channels of the queries, (B, M, Q, P), and of the keys, (H * W, P). Their products sum up
        to the logarithm of the prior, except for a term that depends on the query alone.
    """
    height, width = grid_size
    # Small coordinates keep the summands small: count from the middle of the map.
    origin = centers.new_tensor([(width - 1) // 2, (height - 1) // 2])
    x = cell_coordinates(grid_size, centers) - origin
    a = scales.square() / beta
    linear, square = 2 * a * (centers - origin), -a
    if dtype not in (torch.bfloat16, torch.float16):
        return torch.cat((linear, square), dim=-1), torch.cat((x, x.square()), dim=-1)
    linear1, linear2, linear3 = split_precision(linear, 3, dtype)
    square1, square2, square3 = split_precision(square, 3, dtype)
    high, low = split_precision(x.square(), 2, dtype)
    x = x.to(dtype)
    products = [
        (linear1, x), (linear2, x), (linear3, x),
        (square1, high), (square2, high), (square3, high), (square1, low), (square2, low),
    ]  # fmt: skip
    of_queries, of_keys = zip(*products, strict=True)
    return torch.cat(of_queries, dim=-1), torch.cat(of_keys, dim=-1)


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


def split_precision(x: Tensor, parts: int, dtype: torch.dtype) -> list[Tensor]:
    """Write a tensor as a sum of numbers of a lower precision.

    Args:
        x: Tensor.
        parts: Number of summands.
        dtype: Their precision.

    Returns:
        The summands, the largest first; the gradient is the first one's.
    """
    split = []
    for _ in range(parts):
        part = x.to(dtype)
        split.append(part)
        x = (x - part).detach()
    return split
