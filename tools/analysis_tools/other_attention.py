"""References for the co-attention: no prior, and the prior through PyTorch's FlexAttention.

FlexAttention compiles a function of a logit and its indices into its kernel. The detectors do not
use it: it has to be compiled, needs a GPU for training, and changes with every PyTorch version.
Importing this module adds ``no_prior`` and ``flex`` to ``cross_attn_cfg.implementation``.
"""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from mmsmca.models.layers import attention, joint_attention
from mmsmca.models.layers.box_prior import JointPrior
from mmsmca.models.layers.joint_attention import Cells
from mmsmca.models.layers.memory import LevelCells
from mmsmca.models.layers.spatial_prior import LevelPrior

# Backend of torch.compile for FlexAttention, which writes all logits to memory if not compiled.
BACKEND = 'inductor'


@functools.cache
def compiled_flex_attention(backend: str) -> Callable[..., Tensor]:
    """FlexAttention, recompiled for every shape."""
    return torch.compile(flex_attention, backend=backend, dynamic=False)


def level_flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: LevelPrior,
    cells: LevelCells,
    dropout_p: float = 0.0,
) -> Tensor:
    """SMCA's attention to one level; arguments of :func:`.gaussian_attention`, without dropout."""
    (centers, scales, beta), ((_, width), padding) = prior, cells
    factors = scales.square() / beta

    def add_prior(logit: Tensor, image: Tensor, head: Tensor, i: Tensor, cell: Tensor) -> Tensor:
        dx = cell % width - centers[image, head, i, 0]
        dy = cell // width - centers[image, head, i, 1]
        exponent = factors[image, head, i, 0] * dx * dx + factors[image, head, i, 1] * dy * dy
        modulated = logit - exponent
        if padding is None:
            return modulated
        return torch.where(padding[image, cell], -torch.inf, modulated)

    return compiled_flex_attention(BACKEND)(query, key, value, score_mod=add_prior)


def joint_flex_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: JointPrior,
    cells: Cells,
    dropout_p: float = 0.0,
) -> Tensor:
    """SMCA-DINO's attention; arguments of :func:`.explicit_joint_attention`, without dropout."""
    (centers, precisions, gates), padding = prior, cells.padding
    x, y = cells.coordinates.unbind(-1)

    def add_prior(logit: Tensor, image: Tensor, head: Tensor, i: Tensor, cell: Tensor) -> Tensor:
        dx = x[cell] - centers[image, head, i, 0]
        dy = y[cell] - centers[image, head, i, 1]
        exponent = precisions[image, head, i, 0] * dx * dx + precisions[image, head, i, 1] * dy * dy
        modulated = logit + gates[image, head, i, cells.levels[cell]] - exponent
        if padding is None:
            return modulated
        return torch.where(padding[image, cell], -torch.inf, modulated)

    return compiled_flex_attention(BACKEND)(query, key, value, score_mod=add_prior)


def no_prior(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: LevelPrior | JointPrior,
    cells: LevelCells | Cells,
    dropout_p: float = 0.0,
) -> Tensor:
    """``scaled_dot_product_attention``, called as the package's self-attention calls it."""
    if value.size(-1) > key.size(-1):
        query, key = (F.pad(x, (0, value.size(-1) - key.size(-1))) for x in (query, key))
    mask = None if cells.padding is None else ~cells.padding[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)


attention.IMPLEMENTATIONS.update(no_prior=no_prior, flex=level_flex_attention)
joint_attention.IMPLEMENTATIONS.update(no_prior=no_prior, flex=joint_flex_attention)
