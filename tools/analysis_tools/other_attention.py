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

from mmsmca.models.layers.attention import IMPLEMENTATIONS, Gaussians, Grid

# Backend of torch.compile for FlexAttention, which writes all logits to memory if not compiled.
BACKEND = 'inductor'


@functools.cache
def compiled_flex_attention(backend: str) -> Callable[..., Tensor]:
    """FlexAttention, recompiled for every shape."""
    return torch.compile(flex_attention, backend=backend, dynamic=False)


def flex(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: Gaussians,
    grid: Grid,
    dropout_p: float = 0.0,
) -> Tensor:
    """The package's attention; arguments of :func:`.explicit_attention`, without dropout."""
    (centers, precisions, gates), padding = prior, grid.padding
    x, y = grid.coordinates.unbind(-1)

    def add_prior(logit: Tensor, image: Tensor, head: Tensor, i: Tensor, cell: Tensor) -> Tensor:
        dx = x[cell] - centers[image, head, i, 0]
        dy = y[cell] - centers[image, head, i, 1]
        exponent = precisions[image, head, i, 0] * dx * dx + precisions[image, head, i, 1] * dy * dy
        modulated = logit - exponent
        if gates is not None:
            modulated = modulated + gates[image, head, i, grid.levels[cell]]
        if padding is None:
            return modulated
        return torch.where(padding[image, cell], -torch.inf, modulated)

    return compiled_flex_attention(BACKEND)(query, key, value, score_mod=add_prior)


def no_prior(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: Gaussians,
    grid: Grid,
    dropout_p: float = 0.0,
) -> Tensor:
    """``scaled_dot_product_attention``, called as the package's self-attention calls it."""
    if value.size(-1) > key.size(-1):
        query, key = (F.pad(x, (0, value.size(-1) - key.size(-1))) for x in (query, key))
    mask = None if grid.padding is None else ~grid.padding[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)


IMPLEMENTATIONS.update(no_prior=no_prior, flex=flex)
