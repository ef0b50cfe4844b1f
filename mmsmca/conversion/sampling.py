r"""Gaussians with the moments of the points that a layer of DINO samples.

For each head, deformable attention samples :math:`P` points in each level, at offsets
:math:`o_{jp}` from the query's box, in box sizes, with weights :math:`w_{jp}` that sum to one over
points and levels. The Gaussian of :class:`.BoxPrior` gets

.. math::

    o = \sum_{jp} w_{jp} o_{jp}, \quad
    k = \tfrac{1}{2} \log \sum_{jp} w_{jp} (o_{jp} - o)^2, \quad
    g_j = \log \sum_p w_{jp} + \log (r_j / r_1)^2

The last term makes up for the number of cells: a level with fewer cells needs more weight per cell.
"""

from collections.abc import Sequence

import torch
from mmcv.ops import MultiScaleDeformableAttention
from torch import Tensor

# Smallest standard deviation, in box sizes, and smallest share of a level.
MIN_WIDTH, MIN_SHARE = 0.02, 1e-3
# Variance, in squared cells, that bilinear interpolation adds to a point, on average.
CELL_VARIANCE = 1 / 6


def sampled_points(
    attention: MultiScaleDeformableAttention, features: Tensor, boxes: bool = True
) -> tuple[Tensor, Tensor]:
    """Points that an attention around boxes or points samples.

    Args:
        attention: Deformable attention of a decoder layer.
        features: Query plus its position encoding, (B, Q, C).
        boxes: Whether it samples around boxes. Defaults to True.

    Returns:
        Offsets (x, y), (B, Q, M, L, P, 2), from the box centre in box sizes, or from the point in
        cells of the level; and weights, (B, Q, M, L, P).
    """
    heads, levels, points = attention.num_heads, attention.num_levels, attention.num_points
    offsets = attention.sampling_offsets(features).unflatten(-1, (heads, levels, points, 2))
    weights = attention.attention_weights(features).unflatten(-1, (heads, levels * points))
    if boxes:  # As in MultiScaleDeformableAttention: half a box at an offset of all points.
        offsets = offsets * (0.5 / points)
    return offsets, weights.softmax(-1).unflatten(-1, (levels, points))


def moments(offsets: Tensor, weights: Tensor, strides: Sequence[float]) -> tuple[Tensor, ...]:
    """Offsets, widths and gates of the Gaussians with the moments of these points.

    Args:
        offsets: From :func:`sampled_points`.
        weights: From :func:`sampled_points`.
        strides: Stride of every level.

    Returns:
        Outputs of ``BoxPrior.offsets`` and ``BoxPrior.widths``, (B, Q, M, 2) each, and of
        ``BoxPrior.gates``, (B, Q, M, L).
    """
    mean = (weights[..., None] * offsets).sum((-3, -2))
    deviations = (offsets - mean[..., None, None, :]).square()
    variance = (weights[..., None] * deviations).sum((-3, -2))
    areas = torch.tensor(strides, dtype=mean.dtype, device=mean.device).div(strides[0]).square()
    gates = weights.sum(-1).clamp(min=MIN_SHARE).log() + areas.log()
    return mean, 0.5 * variance.clamp(min=MIN_WIDTH**2).log(), gates


def level_moments(offsets: Tensor, weights: Tensor, betas: Sequence[float]) -> dict[str, Tensor]:
    r"""What :class:`.SpatialPrior` and :class:`.CoAttention` predict, from these points.

    Every level has a Gaussian of its own: with mean :math:`o_j` and variance :math:`v_j` of a
    head's points there, it gets the offset :math:`o_j - 1/2`, as cells count 0, 1, ..., and the
    scales :math:`\sqrt{\beta_j / 2 v_j}`. The heads share the weights of the levels: their mean.

    Args:
        offsets: From :func:`sampled_points`, in cells.
        weights: From :func:`sampled_points`.
        betas: Bandwidth of every level.

    Returns:
        Outputs of ``offsets``, ``scales`` and ``scale_selection``, (B, Q, values) each.
    """
    shares = weights.sum(-1, keepdim=True)
    weights = (weights / shares.clamp(min=torch.finfo(shares.dtype).tiny))[..., None]
    mean = (weights * offsets).sum(-2)
    variance = (weights * (offsets - mean.unsqueeze(-2)).square()).sum(-2) + CELL_VARIANCE
    beta = torch.tensor(betas, dtype=mean.dtype, device=mean.device)[:, None]
    # Level by level, then head by head.
    return dict(
        offsets=(mean - 0.5).transpose(2, 3).flatten(2),
        scales=(beta / (2 * variance)).sqrt().transpose(2, 3).flatten(2),
        scale_selection=shares.squeeze(-1).mean(2).clamp(min=MIN_SHARE).log(),
    )
