"""The priors through PyTorch's FlexAttention: another way to do without a bias in memory.

FlexAttention compiles a function of a logit's indices into its kernel. The detectors do not use it,
the benchmarks compare with it: it has to be compiled, wants a GPU for training, and is new in every
version of PyTorch.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from mmsmca.models.layers.box_prior import JointPrior
from mmsmca.models.layers.joint_attention import Cells


def flex_level_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    centers: Tensor,
    scales: Tensor,
    grid_size: tuple[int, int],
    beta: float,
    key_padding_mask: Tensor | None,
) -> Tensor:
    """Gaussian-modulated attention of one level.

    Arguments and result are those of :func:`.gaussian_attention`, with two scales and without
    dropout.
    """
    width = grid_size[1]
    factors = scales.square() / beta

    def add_prior(logit: Tensor, image: Tensor, head: Tensor, i: Tensor, cell: Tensor) -> Tensor:
        dx = cell % width - centers[image, head, i, 0]
        dy = cell // width - centers[image, head, i, 1]
        exponent = factors[image, head, i, 0] * dx * dx + factors[image, head, i, 1] * dy * dy
        modulated = logit - exponent
        if key_padding_mask is None:
            return modulated
        return torch.where(key_padding_mask[image, cell], -torch.inf, modulated)

    return flex_attention(query, key, value, score_mod=add_prior)


def flex_joint_attention(
    query: Tensor, key: Tensor, value: Tensor, prior: JointPrior, cells: Cells
) -> Tensor:
    """Attention with one softmax over the cells of all levels.

    Arguments and result are those of :func:`.explicit_joint_attention`, without dropout.
    """
    (centers, precisions, gates), padding = prior, cells.padding
    x, y = cells.coordinates.unbind(-1)

    def add_prior(logit: Tensor, image: Tensor, head: Tensor, i: Tensor, cell: Tensor) -> Tensor:
        dx = x[cell] - centers[image, head, i, 0]
        dy = y[cell] - centers[image, head, i, 1]
        exponent = precisions[image, head, i, 0] * dx * dx + precisions[image, head, i, 1] * dy * dy
        gated = logit + gates[image, head, i, cells.levels[cell]]
        modulated = gated - exponent
        return (
            modulated
            if padding is None
            else torch.where(padding[image, cell], -torch.inf, modulated)
        )

    return flex_attention(query, key, value, score_mod=add_prior)


@functools.cache
def compiled(attention: Callable[..., Tensor], backend: str) -> Callable[..., Tensor]:
    """One of the functions above, compiled: uncompiled, FlexAttention writes all logits to memory.

    Args:
        attention: The function.
        backend: Backend of ``torch.compile``.
    """
    return torch.compile(attention, backend=backend, dynamic=False)
