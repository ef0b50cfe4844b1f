"""SMCA as OpenVINO's intermediate representation (IR), in float32 or int8.

By default, OpenVINO runs a model in the processor's fastest precision, silently in bfloat16 if that
is supported. Near 640 pixels this rounds coordinates to steps of 4, and it is too coarse for the
folded prior, whose summands reach hundreds and cancel. The IR therefore marks what must stay in
float32 with OpenVINO's attribute ``DisablePrecisionConversion``: preprocessing, postprocessing,
decoder and head, except their linear layers, from which OpenVINO drops the attribute.
"""

import json
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import nncf
import numpy as np
import openvino
import torch
from openvino import opset13 as op
from openvino.frontend import NodeContext
from openvino.frontend.pytorch import ConversionExtension
from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder
from torch.export import ExportedProgram

from .program import FAST_MODULES, INPUTS, OUTPUTS
from .runtimes import openvino_core, pad, start_openvino

SUFFIX, RUNTIME = '.xml', 'OpenVINO'
start = start_openvino
MARK = dict(name='DisablePrecisionConversion', version='0', value='dynamic:bf16,f16')


def _maximum(sizes: NodeContext) -> list[openvino.Output]:
    """Maximum of two sizes, for which OpenVINO's converter has no rule."""
    return op.maximum(*(op.convert(sizes.get_input(i), 'i64') for i in (0, 1))).outputs()


class IR(NamedTuple):
    """A model, and the precision that its layers may run in.

    Attributes:
        model: The model.
        fast: Operations of the traced program whose layers may run in lower precision and be
            quantised.
        linear: The other linear operations and what only they use, whose layers run in float32 or
            bfloat16.
    """

    model: openvino.Model
    fast: set[str]
    linear: set[str]


def convert(program: ExportedProgram, metadata: dict) -> IR:
    """Convert a program to a model with dynamic batch size, height and width.

    Args:
        program: The program.
        metadata: What else users of the model need to know, stored as JSON.
    """
    decoder = TorchFXPythonDecoder.from_exported_program(program)
    nodes = [node for node in decoder.pt_module.graph.nodes if node.op == 'call_function']
    fast = {node.name for node in nodes if _fast(node)}
    rounding = {node for node in nodes if node.target is torch.ops.aten.linear.default}
    rounding |= {node for node in nodes if node.users and rounding.issuperset(node.users)}
    linear = {node.name for node in rounding} - fast
    maximum = ConversionExtension(str(torch.sym_max), _maximum)
    model = openvino.convert_model(decoder, extension=[maximum])
    for ports, names in ((model.inputs, INPUTS), (model.outputs, OUTPUTS)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), ['mmsmca', key])
    for node in reversed(model.get_ordered_ops()):
        # Layers that the converter made from several operations are attributed to their consumer.
        takers = [port.get_node() for x in node.outputs() for port in x.get_target_inputs()]
        if takers and '/' not in node.get_friendly_name():
            taker = origin(takers[0].get_friendly_name())
            node.set_friendly_name(f'{taker}/{node.get_friendly_name()}')
    for node in model.get_ordered_ops():
        if origin(node.get_friendly_name()) not in fast:
            _rewrite(node)
    model.validate_nodes_and_infer_types()
    return IR(model, fast, linear)


def _fast(node: torch.fx.Node) -> bool:
    """Whether an operation was traced in a module that may run in lower precision."""
    modules = (node.meta.get('nn_module_stack') or {}).values()
    return any(name.startswith(FAST_MODULES) for name, _ in modules)


def origin(name: str) -> str:
    """The operation of the traced program that a layer was made from."""
    return name.split('/')[0]


def _rewrite(node: openvino.Node) -> None:
    """Rewrite a layer to a form that OpenVINO keeps: layers that it rewrites lose the attribute.

    Names are kept unique, as NNCF identifies layers by name.
    """
    kind = node.get_type_name()
    if kind not in REWRITTEN or node.get_output_element_type(0) != openvino.Type.f32:
        return
    inputs = [port.get_source_output() for port in node.inputs()]
    result = REWRITTEN[kind](node, *inputs)
    if result is None:
        return
    given = {port.get_node() for port in inputs}
    made, count = [result], 0
    while made:
        new = made.pop()
        if new not in given:
            name = f'{node.get_friendly_name()}/{new.get_type_name()}_{count}'
            new.set_friendly_name(name)
            made += [port.get_source_output().get_node() for port in new.inputs()]
            count += 1
    node.output(0).replace(result.output(0))


def _constant(value: openvino.Output) -> np.ndarray | None:
    node = value.get_node()
    return node.data if node.get_type_name() == 'Constant' else None


def _attention(node: openvino.Node, query, key, value, mask=None, scale=None) -> openvino.Node:
    """Attention as separate operations, which OpenVINO fuses again, keeping the attribute."""
    if scale is None:
        scale = np.float32(query.get_partial_shape()[-1].get_length() ** -0.5)
    product = op.matmul(op.multiply(query, scale), key, False, True)
    if mask is not None and mask.get_element_type() == openvino.Type.boolean:
        product = op.select(mask, product, op.constant(np.finfo(np.float32).min))
    return op.matmul(op.softmax(product, -1), value, False, False)


def _divide(node: openvino.Node, x, divisor) -> openvino.Node:
    value = _constant(divisor)
    if value is None:
        return op.multiply(x, op.power(divisor, np.float32(-1)))
    return op.multiply(x, (1 / value).astype(np.float32))


def _power(node: openvino.Node, x, exponent) -> openvino.Node | None:
    value = _constant(exponent)
    return op.multiply(x, x) if value is not None and (value == 2).all() else None


def _broadcast(node: openvino.Node, x, shape) -> openvino.Node:
    missing = node.get_output_partial_shape(0).rank.get_length() - len(x.get_partial_shape())
    own = op.concat([np.ones(missing, np.int64), op.shape_of(x)], 0)
    whole = op.maximum(op.convert(shape, 'i64'), own)
    return op.tile(x, op.divide(whole, own))


def _reshape(node: openvino.Node, x, axes=None) -> openvino.Node | None:
    """Add or drop a dimension of size 1; at most one dynamic dimension may change position."""
    before, after = x.get_partial_shape(), node.get_output_partial_shape(0)
    pattern = []
    for i, side in enumerate(after):
        stays = str(list(before)[: i + 1]) == str(list(after)[: i + 1])
        pattern.append(side.get_length() if side.is_static else 0 if stays else -1)
    return op.reshape(x, pattern, True) if pattern.count(-1) < 2 else None


REWRITTEN: dict[str, Callable[..., openvino.Node | None]] = {
    'ScaledDotProductAttention': _attention,
    'Divide': _divide,
    'Power': _power,
    'Broadcast': _broadcast,
    'Unsqueeze': _reshape,
    'Squeeze': _reshape,
}


def quantize(ir: IR, images: Iterable[np.ndarray]) -> IR:
    """Statically quantise backbone, neck and encoder to int8 with NNCF.

    Args:
        ir: The model, which is not changed.
        images: Images to calibrate on, BGR, (H, W, 3), uint8.
    """
    images = list(images)
    names = [node.get_friendly_name() for node in ir.model.get_ops()]
    model = nncf.quantize(
        ir.model,
        nncf.Dataset([dict(zip(INPUTS, pad([image]), strict=True)) for image in images]),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(images),
        ignored_scope=nncf.IgnoredScope(
            names=[name for name in names if origin(name) not in ir.fast], validate=False
        ),
    )
    return ir._replace(model=model)


def fast_precision() -> str:
    """Precision in which OpenVINO runs a model on this processor, unless the IR says otherwise."""
    hint = openvino_core().get_property('CPU', 'INFERENCE_PRECISION_HINT')
    return hint.get_type_name()


def save(ir: IR, path: str | Path) -> None:
    """Write a model to ``path`` and its weights beside it (``.bin``), whole or not at all."""
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        xml, weights = Path(folder) / 'ir.xml', Path(folder) / 'ir.bin'
        openvino.serialize(ir.model, xml, weights)
        tree = ET.parse(xml)
        for layer in tree.iter('layer'):
            if origin(layer.attrib['name']) not in ir.fast | ir.linear:
                info = layer.find('rt_info')
                if info is None:
                    info = ET.Element('rt_info')
                    layer.insert(int(layer.find('data') is not None), info)
                if not any(attribute.attrib == MARK for attribute in info):
                    ET.SubElement(info, 'attribute', MARK)
        tree.write(xml)
        # At no time is there a model beside the weights of another.
        path.unlink(missing_ok=True)
        weights.replace(path.with_suffix('.bin'))
        xml.replace(path)
