"""SMCA as an ONNX graph, in float32 or int8."""

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from onnx_ir import Value
from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static
from onnxscript import opset18
from torch.export import ExportedProgram

from mmsmca.files import atomic_write

from .program import FAST_MODULES, INPUTS, OUTPUTS
from .runtimes import Detect, pad, start_onnxruntime

SUFFIX, RUNTIME = '.onnx', 'onnxruntime'
# The graph needs at least 16 (GridSample, in the convolutional encoder).
OPSET = 18
# The annotations of its methods do not accept the values of a graph.
op: Any = opset18


def convert(program: ExportedProgram, metadata: dict) -> onnx.ModelProto:
    """Convert a program to a graph with dynamic batch size, height and width.

    Args:
        program: The program.
        metadata: What else users of the graph need to know, stored as JSON.

    Returns:
        A checked ONNX model, weights included. Inputs and outputs are those of
        :meth:`.DeployedSMCA.forward`, also by name.
    """
    converted = torch.onnx.export(
        program,
        input_names=INPUTS,
        output_names=OUTPUTS,
        dynamic_shapes=({0: 'batch', 1: 'height', 2: 'width'}, {0: 'batch'}),
        opset_version=OPSET,
        custom_translation_table={
            torch.ops.aten.scaled_dot_product_attention.default: attention_by_head
        },
        dynamo=True,
        verbose=False,
    )
    assert converted is not None  # It is None only without dynamo.
    proto = converted.model_proto
    proto.doc_string = 'In OpenVINO, set INFERENCE_PRECISION_HINT to f32: bfloat16 is too coarse.'
    onnx.helper.set_model_props(proto, {key: json.dumps(x) for key, x in metadata.items()})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def attention_by_head(
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """Attention in a graph, computed one head at a time.

    The standard operators do not include fused attention, so attention weights are materialised;
    this way, only those of one head at a time. Arguments and result are those of PyTorch's
    ``scaled_dot_product_attention``, (B, N, L, d). Of the optional arguments the package uses
    ``attn_mask`` (boolean, with a true entry for every query) and ``scale``.
    """
    _, num_heads, _, channels = cast(tuple[int, ...], query.shape)
    factor = channels**-0.5 if scale is None else scale
    query = op.Mul(query, op.Constant(value_float=factor))
    lowest = op.Constant(value_float=torch.finfo(torch.float32).min)
    split = [op.Split(x, axis=1, num_outputs=num_heads) for x in (query, key, value)]
    heads = []
    for q, k, v in zip(*split, strict=True):
        logits = op.MatMul(q, op.Transpose(k, perm=(0, 1, 3, 2)))
        if attn_mask is not None:
            logits = op.Where(attn_mask, logits, lowest)
        heads.append(op.MatMul(op.Softmax(logits, axis=-1), v))
    return op.Concat(*heads, axis=1)


class _Images(CalibrationDataReader):
    """Feeds images to the quantiser one at a time."""

    def __init__(self, images: Iterable[np.ndarray]) -> None:
        self.images = iter(images)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self.images, None)
        return None if image is None else dict(zip(INPUTS, pad([image]), strict=True))


def quantize(proto: onnx.ModelProto, images: Iterable[np.ndarray]) -> onnx.ModelProto:
    """Statically quantise backbone, neck and encoder to int8 with onnxruntime's quantiser.

    Args:
        proto: The graph, which is not changed.
        images: Images to calibrate on, BGR, (H, W, 3), uint8.

    Returns:
        A new graph with the same inputs and outputs.
    """
    precise = [node.name for node in proto.graph.node if not _fast(node)]
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / 'float32.onnx', Path(folder) / 'int8.onnx'
        onnx.save(proto, before)
        quantize_static(
            before,
            after,
            _Images(images),
            per_channel=True,
            op_types_to_quantize=['Conv', 'MatMul', 'Gemm'],
            nodes_to_exclude=precise,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(after)


def _fast(node: onnx.NodeProto) -> bool:
    """Whether a node was traced in a module that may run in lower precision."""
    scopes = {x.key: x.value for x in node.metadata_props}.get('pkg.torch.onnx.name_scopes', '')
    return any(name in scopes for name in FAST_MODULES)


def start(path: Path, precision: str = 'f32') -> Detect:
    """Start a graph; ``precision`` is ignored, as the graph itself determines it."""
    return start_onnxruntime(path)


def fast_precision() -> str:
    """Precision in which onnxruntime runs a float32 graph."""
    return 'f32'


def save(proto: onnx.ModelProto, path: str | Path) -> None:
    """Write a graph, whole or not at all; an existing file is replaced."""
    with atomic_write(path) as partial:
        onnx.save(proto, partial)
