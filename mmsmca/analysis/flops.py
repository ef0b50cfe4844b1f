"""Teaches MMEngine's FLOPs counter the fused attention, which it would count as nothing."""

from math import prod
from typing import Any

from mmengine.analysis import complexity_analysis
from mmengine.analysis.jit_handles import get_shape

OPERATOR = 'aten::scaled_dot_product_attention'


def attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count an attention's two matrix products, as MMEngine does: a multiply-add is one.

    Args:
        inputs: Traced arguments, first the queries (..., Q, d), keys (..., N, d) and values
            (..., N, d).
        outputs: Traced results.

    Returns:
        Number of multiply-adds.
    """
    query, key, value = (get_shape(x) for x in inputs[:3])
    return prod(query) * key[-2] + prod(query[:-1]) * prod(value[-2:])


def register() -> None:
    """Let every counter made from now on, ``get_flops`` included, count fused attention."""
    complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS[OPERATOR] = attention_flops
