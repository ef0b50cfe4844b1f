"""Gaussian-modulated attention as in the paper: the log prior is added to the logits."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .fused_attention import masked_softmax
from .memory import LevelCells
from .spatial_prior import LevelPrior


def gaussian_log_prior(prior: LevelPrior, shape: tuple[int, int]) -> Tensor:
    r"""Logarithm of the Gaussian-like spatial prior of every query at every cell (paper, eq. 2).

    .. math:: \log G(x, y) = -[s_x^2 (x - c_x)^2 + s_y^2 (y - c_y)^2] / \beta

    A third scale, if given, adds :math:`s_{xy}^2 (x - c_x)^2 (y - c_y)^2` inside the bracket. The
    paper divides by the squared scales, the authors' code multiplies by them, as does this one.

    Args:
        prior: Priors of the queries.
        shape: Height and width of the feature map, in cells.

    Returns:
        Tensor of shape (B, M, Q, H * W), nowhere positive.
    """
    (height, width), (centers, scales, beta) = shape, prior
    # The axes stay separate until the last sum, so little more than the result is in memory.
    dx2 = (torch.arange(width, device=centers.device) - centers[..., 0:1]).square()
    dy2 = (torch.arange(height, device=centers.device) - centers[..., 1:2]).square()
    weights = -scales.square() / beta
    along_x, along_y = weights[..., 0:1] * dx2, weights[..., 1:2] * dy2
    log_prior = along_y.unsqueeze(-1) + along_x.unsqueeze(-2)
    if scales.size(-1) == 3:
        along_both = (weights[..., 2:3] * dy2).unsqueeze(-1) * dx2.unsqueeze(-2)
        log_prior = log_prior + along_both
    return log_prior.flatten(-2)


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: LevelPrior,
    cells: LevelCells,
    dropout_p: float = 0.0,
) -> Tensor:
    """Gaussian-modulated attention that materialises the prior and the attention weights.

    Arguments and result are those of :func:`.gaussian_attention`, except that the result is finite
    but meaningless for an image whose cells are all padding.
    """
    bias = gaussian_log_prior(prior, cells.shape)
    return biased_attention(query, key, value, bias, cells.padding, dropout_p)


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Tensor,
    key_padding_mask: Tensor | None,
    dropout_p: float,
) -> Tensor:
    """Attention with a bias of shape (B, M, Q, N) added to the logits."""
    weights = masked_softmax(content_logits(query, key) + bias, key_padding_mask)
    return F.dropout(weights, dropout_p).to(value.dtype) @ value


def content_logits(query: Tensor, key: Tensor) -> Tensor:
    """Logits of plain attention, (B, M, Q, N), from (B, M, Q, d) and (B, M, N, d)."""
    return query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
