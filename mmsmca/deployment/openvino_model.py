"""SMCA as OpenVINO's intermediate representation (IR), and its form in int8.

OpenVINO runs a model in what the processor is fast at: by default in bfloat16 where it has it, and
tells nobody. That rounds 640 pixels to steps of 2, and does not hold the folded prior, whose
summands reach hundreds and cancel. So the IR itself says what stays in float32, by OpenVINO's
attribute ``DisablePrecisionConversion``: all of pre- and postprocessing, decoder and head but their
linear layers, of which OpenVINO drops the attribute.
"""

import json
import tempfile
import xml.etree.ElementTree as ET
from collections.abc import Iterable
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
from .runtimes import pad, start_openvino

SUFFIX, RUNTIME = '.xml', 'OpenVINO'
start = start_openvino
MARK = dict(name='DisablePrecisionConversion', version='0', value='dynamic:bf16,f16')


def _maximum(sizes: NodeContext) -> list[openvino.Output]:
    """The larger of two sizes, for which OpenVINO's converter has no rule."""
    return op.maximum(*(op.convert(sizes.get_input(i), 'i64') for i in (0, 1))).outputs()


class IR(NamedTuple):
    """A model, and what is special about its layers.

    Attributes:
        model: The model.
        precise: Operations of the traced program whose layers stay in float32.
        whole: Those whose layers are not quantised.
    """

    model: openvino.Model
    precise: set[str]
    whole: set[str]


def convert(program: ExportedProgram, metadata: dict) -> IR:
    """Convert a program; batch, height and width stay free.

    Args:
        program: The program.
        metadata: What the model's user has to know besides, stored as JSON.
    """
    decoder = TorchFXPythonDecoder.from_exported_program(program)
    nodes = [node for node in decoder.pt_module.graph.nodes if node.op == 'call_function']
    whole = {node.name for node in nodes if not _fast(node)}
    linear = torch.ops.aten.linear.default
    precise = whole - {node.name for node in nodes if node.target is linear}
    maximum = ConversionExtension(str(torch.sym_max), _maximum)
    model = openvino.convert_model(decoder, extension=[maximum])
    for ports, names in ((model.inputs, INPUTS), (model.outputs, OUTPUTS)):
        for port, name in zip(ports, names, strict=True):
            port.get_tensor().set_names({name})
    for key, value in metadata.items():
        model.set_rt_info(json.dumps(value), ['mmsmca', key])
    for node in model.get_ordered_ops():
        if (
            node.get_type_name() == 'ScaledDotProductAttention'
            and origin(node.get_friendly_name()) in precise
        ):
            _take_apart(node)
    model.validate_nodes_and_infer_types()
    return IR(model, precise, whole)


def _fast(node: torch.fx.Node) -> bool:
    """Whether an operation was traced in a module that may run in lower precision."""
    modules = (node.meta.get('nn_module_stack') or {}).values()
    return any(name.startswith(FAST_MODULES) for name, _ in modules)


def origin(name: str) -> str:
    """The operation of the traced program that a layer was made of."""
    return name.split('/')[0]


def _take_apart(attention: openvino.Node) -> None:
    """Replace a fused attention by its parts, which OpenVINO fuses again.

    The attribute of a fused one is lost when OpenVINO does the same.
    """
    query, key, value, mask, scale = (x.get_source_output() for x in attention.inputs())
    parts = [product := op.multiply(query, scale), op.matmul(product, key, False, True)]
    if mask.get_element_type() == openvino.Type.boolean:
        lowest = op.constant(np.finfo(np.float32).min)
        parts.append(op.select(mask, parts[-1], lowest))
    parts.append(op.softmax(parts[-1], -1))
    parts.append(op.matmul(parts[-1], value, False, False))
    for part in parts:
        part.set_friendly_name(f'{attention.get_friendly_name()}/{part.get_type_name()}')
    attention.output(0).replace(parts[-1].output(0))


def quantize(ir: IR, images: Iterable[np.ndarray]) -> IR:
    """Quantise backbone, neck and encoder to int8, statically, by NNCF.

    Args:
        ir: What is quantised; it is not changed.
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
            names=[name for name in names if origin(name) in ir.whole], validate=False
        ),
    )
    return ir._replace(model=model)


def fast_precision() -> str:
    """What OpenVINO runs a model in on this processor, where the IR does not say otherwise."""
    hint = openvino.Core().get_property('CPU', 'INFERENCE_PRECISION_HINT')
    return hint.get_type_name()


def save(ir: IR, path: str | Path) -> None:
    """Write a model as PATH and its weights beside it (``.bin``), whole or not at all."""
    path = Path(path)
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        xml, weights = Path(folder) / 'ir.xml', Path(folder) / 'ir.bin'
        openvino.serialize(ir.model, xml, weights)
        tree = ET.parse(xml)
        for layer in tree.iter('layer'):
            if origin(layer.attrib['name']) in ir.precise:
                info = layer.find('rt_info')
                if info is None:
                    info = ET.Element('rt_info')
                    layer.insert(int(layer.find('data') is not None), info)
                if not any(attribute.attrib == MARK for attribute in info):
                    ET.SubElement(info, 'attribute', MARK)
        tree.write(xml)
        # Nowhere in between is there a model with the weights of another.
        path.unlink(missing_ok=True)
        weights.replace(path.with_suffix('.bin'))
        xml.replace(path)
