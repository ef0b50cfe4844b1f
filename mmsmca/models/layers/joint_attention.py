"""Gaussian-modulated attention with one softmax over the cells of all levels."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .box_prior import JointPrior
from .explicit_attention import biased_attention
from .folded_attention import cell_coordinates
from .fused_attention import fused_attention


def level_coordinates(
    level_shapes: Sequence[tuple[int, int]], strides: Sequence[int], like: Tensor
) -> list[Tensor]:
    """Centres (x, y) of the cells of every level, in finest cells.

    Args:
        level_shapes: Height and width of every level, in cells.
        strides: Stride of every level, in pixels.
        like: Tensor whose dtype and device the coordinates get.

    Returns:
        (H_j * W_j, 2) a level.
    """
    return [
        (cell_coordinates(shape, like) + 0.5) * (stride / strides[0])
        for shape, stride in zip(level_shapes, strides, strict=True)
    ]


def joint_log_prior(
    prior: JointPrior, level_shapes: Sequence[tuple[int, int]], strides: Sequence[int]
) -> Tensor:
    levels = []
    coordinates = level_coordinates(level_shapes, strides, prior.centers)
    for j, x in enumerate(coordinates):
        squares = (x - prior.centers.unsqueeze(-2)).square()
        exponent = (prior.precisions[..., j : j + 1, :] * squares).sum(-1)
        levels.append(prior.gates[..., j : j + 1] - exponent)
    return torch.cat(levels, dim=-1)


def explicit_joint_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: JointPrior,
    level_shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    bias = joint_log_prior(prior, level_shapes, strides)
    return biased_attention(query, key, value, bias, key_padding_mask, dropout_p)
