"""FLOPs from MMEngine's counter, including fused attention, which it would count as zero."""

from functools import partial
from math import prod
from typing import Any

from mmengine.analysis import complexity_analysis, get_model_complexity_info
from mmengine.analysis.jit_handles import get_shape
from mmengine.model import BaseModel

OPERATOR = 'aten::scaled_dot_product_attention'


def attention_flops(inputs: list[Any], outputs: list[Any]) -> int:
    """Count the two matrix products of attention, each multiply-add as one, like MMEngine.

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
    """Make every counter created from now on, also in ``get_flops``, count fused attention."""
    complexity_analysis._DEFAULT_SUPPORTED_FLOP_OPS[OPERATOR] = attention_flops


def complexity(model: BaseModel, data: dict) -> tuple[int, int]:
    """Count a detector's parameters and multiply-adds, as MMDetection's ``get_flops`` does.

    Args:
        model: The detector, in evaluation mode.
        data: A batch from a data loader.

    Returns:
        Number of parameters, and of multiply-adds in a forward pass on the batch.
    """
    data = model.data_preprocessor(data)
    forward = model.forward
    model.forward = partial(forward, data_samples=data['data_samples'])
    found = get_model_complexity_info(
        model, inputs=data['inputs'], show_table=False, show_arch=False
    )
    model.forward = forward
    return found['params'], found['flops']
