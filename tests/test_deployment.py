"""Exported detectors detect what the detector does, and are written only if so."""

import argparse
import json
import logging
import runpy
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import benchmark_runtimes
import benchmarks
import cv2
import numpy as np
import onnx
import openvino
import pytest
import torch
from mmdet.datasets.transforms import Resize
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from rt_detr import DeployedRTDETR
from utils import ROOT, SMALL_TRANSFORMERS, build_detector, randomise

import mmsmca.deployment.export
from mmsmca.datasets.shapes import SHAPES_CLASSES, Shapes
from mmsmca.deployment import comparison, from_config, onnx_graph, openvino_model, program, runtimes
from mmsmca.engine.quiet import quiet

METADATA = dict(classes=list(SHAPES_CLASSES), scale=[128, 128])
SIZES = ((128, 128), (93, 150), (140, 71))  # height, width
SINGLE_SCALE = 'small/smca_r18w16_1xb8-11e_shapes128.py'
MULTI_SCALE = 'small/smca-multi-scale_r18w16_1xb4-3ki_shapes192.py'
CONV = 'small/smca-multi-scale-conv_r18w16_1xb4-3ki_shapes192.py'
DINO = 'small/smca-dino_r18w16_1xb4-3ki_shapes192.py'


def tiny(num_levels: int, encoder: dict, cross_attn: dict, prior: dict) -> dict:
    """Options of a model of 64 channels with one decoder layer; the first level has stride 16."""
    heads = dict(embed_dims=64, num_heads=2)
    layer = dict(self_attn_cfg=heads, ffn_cfg=dict(embed_dims=64, feedforward_channels=64))
    attention = dict(cross_attn_cfg=heads | cross_attn, spatial_prior_cfg=heads | prior)
    return dict(
        strides=[16, 32][:num_levels],
        positional_encoding=dict(num_feats=32),
        backbone=dict(
            num_stages=num_levels,
            strides=(4, 2)[:num_levels],
            dilations=(1, 1)[:num_levels],
            out_indices=tuple(range(num_levels)),
        ),
        neck=dict(out_channels=64, in_channels=[16, 32][:num_levels], num_outs=num_levels),
        bbox_head=dict(embed_dims=64),
        encoder=dict(dict(num_layers=1, layer_cfg=layer), **encoder),
        decoder=dict(num_layers=1, layer_cfg=layer | attention),
    )


def on_transformers(
    model: str, neck: dict, out_indices: tuple, strides: Sequence = (16, 32)
) -> dict:
    """Options of a tiny SMCA-DINO with a backbone of transformers."""
    options = tiny(2, dict(num_convs=1), {}, {})
    return options | dict(
        strides=list(strides),
        data_preprocessor=dict(pad_size_divisor=32),
        backbone=dict(
            _delete_=True, type='TransformersBackbone', model=model, out_indices=out_indices,
            config=SMALL_TRANSFORMERS[model],
        ),
        neck=options['neck'] | neck if '_delete_' not in neck else neck,
    )  # fmt: skip


ARCHITECTURES = {
    'single_scale': (SINGLE_SCALE, tiny(1, {}, {}, {})),
    'multi_scale': (
        MULTI_SCALE,
        tiny(2, dict(num_layers=2, layer_kinds=['multi', 'intra']), {}, dict(beta=8.0)),
    ),
    # The encoder halves the resolution of the finest level.
    'conv': (
        CONV,
        tiny(2, {}, dict(scale_selection='uniform'), dict(beta=8.0, scale='covariance')),
    ),
    'smca_dino': (DINO, tiny(2, dict(num_convs=1), {}, {})),
    # Windows, and their padding.
    'swin': (DINO, on_transformers('swin', out_indices=(2, 3), neck=dict(in_channels=[32, 64]))),
    # Rotary position encoding.
    'dinov3_vit': (
        DINO,
        on_transformers(
            'dinov3_vit',
            out_indices=(3,),
            strides=[8, 16],
            neck=dict(
                _delete_=True,
                type='SimpleFeaturePyramid',
                in_channels=32,
                out_channels=64,
                num_outs=2,
            ),
        ),
    ),
}


@cache
def build(architecture: str) -> BaseModel:
    torch.manual_seed(0)
    model = build_detector(*ARCHITECTURES[architecture])
    return randomise(model).eval()


class Converted(NamedTuple):
    graph: onnx.ModelProto
    ir: openvino_model.IR


@cache
def convert(architecture: str) -> Converted:
    with quiet(logging.WARNING):  # pytest would have PyTorch's exporter write all its traces down.
        traced = program.trace(build(architecture))
        return Converted(*(form.convert(traced, METADATA) for form in (onnx_graph, openvino_model)))


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    """Folder with ``data``, ``config.py`` and ``weights.pth`` of the single-scale detector."""
    folder = tmp_path_factory.mktemp('detector')
    data = folder / 'data'
    Shapes(num_train=16, num_val=3, size=128, max_objects=2, seed=0).write(data)
    loader = dict(num_workers=0, persistent_workers=False, dataset=dict(data_root=f'{data}/'))
    name, options = ARCHITECTURES['single_scale']
    (folder / 'config.py').write_text(
        f"_base_ = '{ROOT / 'configs' / name}'\n"
        f'model = {options}\n'
        f'train_dataloader = val_dataloader = test_dataloader = {loader}\n'
        f'test_evaluator = dict(ann_file="{data}/annotations/instances_val.json")\n'
    )
    meta = dict(dataset_meta=dict(classes=SHAPES_CLASSES))
    state = build('single_scale').state_dict()
    torch.save(dict(meta=meta, state_dict=state), folder / 'weights.pth')
    return folder


def run_tool(name: str, *arguments: object) -> int:
    """Run a tool in this process; its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [name, *map(str, arguments)])
        main = runpy.run_path(str(ROOT / 'tools' / name))['main']
        return main()


def export(form: ModuleType, folder: Path, converted: object, *options: object) -> int:
    """Run a tool, which gets to see one conversion in place of its own."""
    name = 'export_onnx.py' if form is onnx_graph else 'export_openvino.py'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmsmca.deployment.export, 'trace', lambda model: None)
        patch.setattr(form, 'convert', lambda traced, metadata: converted)
        return run_tool(name, folder / 'config.py', folder / 'weights.pth', *options)


@pytest.fixture(scope='module')
def exported(folder: Path) -> Path:
    """The detector as the commands write it: this path, and the same with the suffix ``.xml``."""
    path, converted = folder / 'smca.onnx', convert('single_scale')
    assert export(onnx_graph, folder, converted.graph, path) == 0
    assert export(openvino_model, folder, converted.ir, path.with_suffix('.xml')) == 0
    return path


def shapes_images() -> list[np.ndarray]:
    """An image in every one of the sizes."""
    return [
        cv2.resize(image, size[::-1])
        for image, size in zip(comparison.check_images(), SIZES, strict=True)
    ]


def assert_agree(model: BaseModel, detect: runtimes.Detect, *batches: list[np.ndarray]) -> None:
    """All agree within the tolerances that are promised."""
    for batch in batches:
        difference = comparison.compare(model, detect, batch)
        assert difference.unmatched == 0
        assert difference.scores <= 1e-4
        assert difference.boxes <= 0.05


@pytest.mark.slow
@pytest.mark.parametrize('architecture', ARCHITECTURES)
def test_agrees_with_pytorch(architecture: str, tmp_path: Path, monkeypatch):
    """Images alone and padded in pairs; free and fixed sizes; float32 in both runtimes."""
    model, converted = build(architecture), convert(architecture)
    batches = comparison.check_batches(shapes_images())
    assert [len(batch) for batch in batches] == [1, 1, 1, 2, 2, 2]
    # The comparison is of something: scores a hundred tolerances apart, boxes here and there.
    boxes, scores, _ = comparison.run_torch(model, batches[0])[0]
    assert np.ptp(scores) > 0.01
    assert np.ptp(boxes, axis=0).min() > 5

    path = tmp_path / 'ir.xml'
    openvino_model.save(converted.ir, path)
    graph = converted.graph.SerializeToString()
    assert_agree(model, runtimes.start_onnxruntime(graph), *batches)
    assert_agree(model, runtimes.start_openvino(path, precision='f32'), *batches)

    # Two images of 93 x 71 and less, padded to a fixed size that no stride divides.
    fixed = [image[:93, :71] for image in (batches[0][0], batches[1][0][:50])]
    shapes = dict(images=[2, 93, 71, 3], sizes=[2, 2])
    ir = openvino.Core().read_model(path)
    ir.reshape(shapes)
    openvino.serialize(ir, tmp_path / 'fixed.xml')
    detect = runtimes.start_openvino(tmp_path / 'fixed.xml', precision='f32')
    assert_agree(model, detect, fixed)
    path = tmp_path / 'free.onnx'
    onnx.save(converted.graph, path)
    for name, shape in shapes.items():
        options = ['--input_name', name, '--input_shape', ','.join(map(str, shape))]
        monkeypatch.setattr(sys, 'argv', ['', *options, str(path), str(path)])
        runpy.run_module('onnxruntime.tools.make_dynamic_shape_fixed', run_name='__main__')
    assert_agree(model, runtimes.start_onnxruntime(path), fixed)


def test_graph_is_standard_and_of_free_size(exported: Path):
    proto = onnx.load(exported)
    assert {node.domain for node in proto.graph.node} == {''}
    assert [(x.domain, x.version) for x in proto.opset_import] == [('', 18)]
    shapes = {
        x.name: [d.dim_param or d.dim_value for d in x.type.tensor_type.shape.dim]
        for x in [*proto.graph.input, *proto.graph.output]
    }
    assert shapes == {
        'images': ['batch', 'height', 'width', 3],
        'sizes': ['batch', 2],
        'boxes': ['batch', 25, 4],
        'scores': ['batch', 25],
        'labels': ['batch', 25],
    }
    assert {x.key: json.loads(x.value) for x in proto.metadata_props} == METADATA
    # A guard behind every masked softmax would take as long as all the rest.
    assert 'IsNaN' not in {node.op_type for node in proto.graph.node}


def test_ir_is_of_free_size(exported: Path):
    read = openvino.Core().read_model(exported.with_suffix('.xml'))
    shapes = {x.any_name: str(x.partial_shape) for x in [*read.inputs, *read.outputs]}
    assert shapes == {
        'images': '[?,?,?,?]',
        'sizes': '[?,?]',
        'boxes': '[?,25,4]',
        'scores': '[?,25]',
        'labels': '[?,25]',
    }
    stored = {key: read.get_rt_info(['mmsmca', key]).astype(str) for key in METADATA}
    assert {key: json.loads(value) for key, value in stored.items()} == METADATA


def described(layer: openvino.Node) -> dict[str, str]:
    """What OpenVINO says of a layer that it runs."""
    return {key: value.astype(str) for key, value in layer.get_rt_info().items()}


def of_content(layer: openvino.Node) -> bool:
    """Whether a layer is a projection of queries or keys on its way into an attention."""
    while described(layer)['layerType'] in ('Reshape', 'Transpose', 'Eltwise', 'Reorder'):
        layer = layer.input(0).get_source_output().get_node()
    return described(layer)['layerType'] == 'Split'


def test_ir_keeps_co_attention_in_float32(exported: Path):
    core, ir = runtimes.openvino_core(), convert('single_scale').ir
    compiled = core.compile_model(
        exported.with_suffix('.xml'), 'CPU', {'INFERENCE_PRECISION_HINT': 'bf16'}
    )
    precisions, rounded = defaultdict(set), set()
    for layer in compiled.get_runtime_model().get_ops():
        info = described(layer)
        attends = '/Softmax' in info['originalLayersNames']
        kind = 'attention' if attends else info['layerType']
        precisions[kind].add(info['outputPrecisions'])
        if 'bf16' in info['outputPrecisions'] and kind != 'Reorder' and not of_content(layer):
            names = info['originalLayersNames'].split(',')
            rounded |= {openvino_model.origin(name) for name in names if '/' in name}
    # The encoder's is OpenVINO's own, of other names.
    assert precisions['attention'] == {'f32'}
    # The channels of the priors neither; the images are, which the backbone would round.
    assert rounded - ir.fast - ir.linear <= {'div', '_to_copy'}
    fast = 'BF16' in core.get_property('CPU', 'OPTIMIZATION_CAPABILITIES')
    assert precisions['Convolution'] == {'bf16' if fast else 'f32'}


def disturbed(parameter: str, value: float) -> onnx.ModelProto:
    """The single-scale graph with ``value`` added to a parameter."""
    proto = onnx.ModelProto()
    proto.CopyFrom(convert('single_scale').graph)
    (tensor,) = [x for x in proto.graph.initializer if x.name.endswith(parameter)]
    values = onnx.numpy_helper.to_array(tensor) + np.float32(value)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return proto


@pytest.mark.parametrize('parameter', ['bbox_head.fc_reg.bias', 'bbox_head.fc_cls.bias'])
def test_comparison_notices(parameter: str):
    detect = runtimes.start_onnxruntime(disturbed(parameter, 0.01).SerializeToString())
    model = build('single_scale')
    assert not comparison.compare(model, detect, shapes_images()[:1]).tolerable


def test_comparison_notices_a_missing_detection():
    model, images = build('single_scale'), shapes_images()[:1]
    ((boxes, scores, labels),) = comparison.run_torch(model, images)
    without_best = [(boxes[1:], scores[1:], labels[1:])]
    assert not comparison.compare(model, lambda images: without_best, images).tolerable


def test_a_tie_is_a_tie(monkeypatch):
    """Cells of equal scores may be selected as queries in any order, others may not."""
    model, images = build('smca_dino'), shapes_images()[:2]
    with comparison._selection(model) as (exchanged, scores):
        comparison.run_torch(model, images)
        monkeypatch.setattr(comparison, 'TIE', 1.0)
        ties = comparison._ties(scores, model.num_queries)
        exchanged += [next(tie for tie in ties if tie[0] == image) for image in (0, 1)]
        detections = comparison.run_torch(model, images)
    gaps = [(x[tie[1]] - x[tie[2]]).item() for x, tie in zip(scores[0], exchanged, strict=True)]
    for largest, tied in ((max(gaps), True), (min(gaps) / 2, False)):
        monkeypatch.setattr(comparison, 'TIE', largest)
        found = comparison.compare(model, lambda images: detections, images)
        assert found.tolerable == tied


def test_what_differs_is_not_written(folder: Path, capsys):
    differs = disturbed('bbox_head.fc_reg.bias', 0.05)
    assert export(onnx_graph, folder, differs, folder / 'different.onnx') == 1
    assert 'not written' in capsys.readouterr().err
    assert not list(folder.glob('different.onnx*'))


def test_overwriting(folder: Path, capsys):
    out, graph = folder / 'there.onnx', convert('single_scale').graph
    out.write_bytes(b'precious')
    assert export(onnx_graph, folder, graph, out) == 2
    assert 'there.onnx exists' in capsys.readouterr().err
    assert out.read_bytes() == b'precious'
    assert export(onnx_graph, folder, graph, out, '--overwrite') == 0
    assert onnx.load(out) == graph


def test_ir_is_written_whole(tmp_path: Path, monkeypatch):
    path, ir = tmp_path / 'smca.xml', convert('single_scale').ir
    openvino_model.save(ir, path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert set(before) == {'smca.xml', 'smca.bin'}

    def full_disk(model, xml, weights) -> None:
        xml.write_text('<net')
        raise OSError('no space left')

    monkeypatch.setattr(openvino, 'serialize', full_disk)
    with pytest.raises(OSError, match='no space'):
        openvino_model.save(ir, path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def quantised_layers(path: Path) -> set[str]:
    """The traced operations that a quantised detector's int8 layers were made of."""
    if path.suffix == '.onnx':
        nodes = onnx.load(path).graph.node
        return {node.name for node in nodes if node.op_type == 'QuantizeLinear'}
    layers = openvino.Core().read_model(path).get_ops()
    quantisers = [x for x in layers if x.get_type_name() == 'FakeQuantize']
    takers = [port.get_node() for x in quantisers for port in x.output(0).get_target_inputs()]
    return {x.get_friendly_name() for x in takers}


@pytest.mark.parametrize('form', [onnx_graph, openvino_model], ids=['onnx', 'openvino'])
def test_int8(folder: Path, exported: Path, form: ModuleType, capsys):
    converted = convert('single_scale')[form is openvino_model]
    whole, path = exported.with_suffix(form.SUFFIX), folder / f'int8{form.SUFFIX}'
    assert export(form, folder, converted, path, '--int8', 4) == 0
    assert 'as it runs here, int8 and ' in capsys.readouterr().out
    layers = quantised_layers(path)
    assert len(layers) > 10 and not quantised_layers(whole)
    assert not any('decoder' in name or 'bbox_head' in name for name in layers)
    if form is openvino_model:
        assert {openvino_model.origin(name) for name in layers} <= converted.fast
    (_, expected, _), (_, scores, _) = (
        form.start(file, precision='f32')(shapes_images()[:1])[0] for file in (whole, path)
    )
    assert 1e-5 < np.abs(scores - expected).max() < 0.05


def test_int8_needs_images(folder: Path, capsys):
    for options, named in (
        (['--int8', '0'], '--int8 0: at least one image'),
        (['--int8', '--cfg-options', 'train_dataloader.dataset.ann_file=gone.json'], 'gone.json'),
        (['--int8', '--cfg-options', 'train_dataloader.dataset.filter_cfg.min_size=1000'],
         'train_dataloader.dataset.filter_cfg or indices'),
    ):  # fmt: skip
        assert export(openvino_model, folder, None, folder / 'no.xml', *options) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert line.startswith('export_openvino.py: error: ') and named in line
        assert not list(folder.glob('no.*'))


@pytest.mark.parametrize(
    ('tool', 'package'), [('export_onnx.py', 'onnx'), ('export_openvino.py', 'nncf')]
)
def test_missing_package(tool: str, package: str, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    for name in ('onnx_graph', 'openvino_model'):
        monkeypatch.delitem(sys.modules, f'mmsmca.deployment.{name}')
        monkeypatch.delattr(mmsmca.deployment, name)
    with pytest.raises(SystemExit, match='2'):
        run_tool(tool)
    assert capsys.readouterr().err.startswith(f'{tool}: error: {package} is not installed: pip')


def test_old_pytorch(tmp_path: Path, monkeypatch, capsys):
    """What trains with an earlier PyTorch exports with a later one: said before any work."""
    monkeypatch.setattr(torch, '__version__', '2.6.0+cpu')
    assert run_tool('export_onnx.py', 'config.py', 'weights.pth', tmp_path / 'smca.onnx') == 2
    assert 'torch 2.6.0+cpu cannot export' in capsys.readouterr().err


DETR = f"_base_ = '{ROOT}/configs/small/detr_r18w16_1xb4-3ki_shapes192.py'"
DEFORMABLE = f"""
_base_ = '{ROOT}/configs/smca/smca-deformable-encoder_r50_8xb1-50e_coco.py'
model = dict(
    backbone=dict(depth=18, base_channels=16),
    neck=dict(in_channels=[32, 64, 128]),
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=1),
)
"""


@pytest.mark.parametrize(
    ('config', 'options', 'named'),
    [
        ('gone.py', [], 'config gone.py does not exist'),
        ('empty.py', [], 'config empty.py has no model'),
        ('detr.py', [], 'model.type=DETR'),
        ('deformable.py', [], 'deformable attention is not a standard operator'),
        ('smca.py', ['model.encoder.num_layers=2'], 'encoder.layers.1'),
        ('smca.py', ['model.bbox_head.num_classes=80'], 'model.bbox_head.num_classes is 80'),
        ('smca.py', ['model.data_preprocessor.type=BoxInstDataPreprocessor'],
         'must be a DetDataPreprocessor'),
        ('smca.py', ['test_dataloader.dataset.pipeline.0.color_type=grayscale'],
         "test_dataloader.dataset.pipeline.0.color_type='grayscale' cannot be exported"),
        ('smca.py', ['test_dataloader=None'], 'test_dataloader.dataset.pipeline is missing'),
    ],
)  # fmt: skip
def test_refusals(folder, tmp_path, monkeypatch, capsys, config, options, named):
    monkeypatch.chdir(tmp_path)
    Path('empty.py').write_text('')
    Path('detr.py').write_text(DETR)
    Path('deformable.py').write_text(DEFORMABLE)
    Path('smca.py').write_text(f"_base_ = '{folder}/config.py'")
    before = sorted(Path().iterdir())
    arguments = [config, folder / 'weights.pth', 'out.onnx']
    if config in ('detr.py', 'deformable.py'):
        # Weights that do not fit would be refused before.
        other = MODELS.build(Config.fromfile(config).model)
        arguments[1] = folder / 'other.pth'
        torch.save(dict(state_dict=other.state_dict()), arguments[1])
    if options:
        arguments += ['--cfg-options', *options]
    assert run_tool('export_onnx.py', *arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('export_onnx.py: error: ')
    assert named in line
    assert sorted(Path().iterdir()) == before


def test_missing_checkpoint_and_folder(folder: Path, capsys):
    config = folder / 'config.py'
    assert run_tool('export_onnx.py', config, 'gone.pth', folder / 'x.onnx') == 2
    assert 'gone.pth does not exist' in capsys.readouterr().err
    assert run_tool('export_onnx.py', config, 'gone.pth', folder / 'no/folder/x.onnx') == 2
    assert 'is not a folder: create it first' in capsys.readouterr().err


@pytest.mark.parametrize(
    'options',
    [
        dict(mean=None, std=None),
        dict(mean=[120.0], std=[60.0]),
        dict(bgr_to_rgb=False),
        dict(bgr_to_rgb=False, rgb_to_bgr=True, pad_value=3, boxtype2tensor=False),
        dict(pad_value=3, pad_size_divisor=64),
    ],
    ids=['not_normalised', 'one_mean', 'bgr', 'padded_otherwise', 'padded_further'],
)
def test_data_preprocessor(options: dict):
    name, model_options = ARCHITECTURES['single_scale']
    torch.manual_seed(0)
    model = build_detector(name, dict(model_options, data_preprocessor=options))
    deployed = program.DeployedSMCA(randomise(model).eval())

    def detect(images: list[np.ndarray]) -> runtimes.Detections:
        with torch.no_grad():
            detections = deployed(*map(torch.from_numpy, runtimes.pad(images)))
        return list(zip(*(x.numpy() for x in detections), strict=True))

    assert_agree(model, detect, shapes_images()[1:])


def test_windows_need_sizes_that_halve():
    name, options = ARCHITECTURES['swin']
    program.check_supported(build_detector(name, options))
    whole = dict(options, data_preprocessor=dict(pad_size_divisor=1))
    with pytest.raises(program.ExportError, match='pad_size_divisor=32'):
        program.check_supported(build_detector(name, whole))


LOAD, PACK = dict(type='LoadImageFromFile', backend_args=None), dict(type='PackDetInputs')
RESIZE = dict(type='Resize', scale=(96, 64), keep_ratio=True)


def config_of(*pipelines: list[dict]) -> Config:
    datasets = [dict(type='CocoDataset', pipeline=pipeline) for pipeline in pipelines]
    concatenated = dict(type='ConcatDataset', datasets=datasets)
    return Config(dict(test_dataloader=dict(dataset=concatenated)))


@pytest.mark.parametrize(
    ('resize', 'scale'),
    [
        (RESIZE, [96, 64]),
        (dict(RESIZE, type='mmdet.Resize', scale=(64, 96)), [96, 64]),
        (dict(RESIZE, type=Resize, scale=96, clip_object_border=False), [96, 96]),
    ],
    ids=['plain', 'scope', 'class_and_int'],
)
def test_scale_of_the_images(resize: dict, scale: list[int]):
    pipeline = [LOAD, resize, dict(type='LoadAnnotations', with_bbox=True), PACK]
    assert from_config.image_scale(config_of(pipeline, pipeline)) == scale


OTHER = dict(RESIZE, scale=(480, 320))
PIPELINE = 'test_dataloader.dataset.datasets.0.pipeline'


@pytest.mark.parametrize(
    ('pipelines', 'named'),
    [
        ([[LOAD, dict(RESIZE, keep_ratio=False), PACK]], f'{PIPELINE}.1.keep_ratio=False'),
        ([[LOAD, dict(RESIZE, backend='pillow')]], f"{PIPELINE}.1.backend='pillow'"),
        ([[LOAD, dict(RESIZE, interpolation='area')]], f"{PIPELINE}.1.interpolation='area'"),
        ([[dict(LOAD, to_float32=True), RESIZE]], f'{PIPELINE}.0.to_float32=True'),
        ([[dict(LOAD, imdecode_backend='tifffile'), RESIZE]], f'{PIPELINE}.0.imdecode_backend='),
        ([[LOAD, dict(type='Resize', scale_factor=0.5, keep_ratio=True)]], 'must be two positive'),
        # It rounds sides down.
        ([[LOAD, dict(RESIZE, type='FixScaleResize')]], f'{PIPELINE}.1.type=FixScaleResize'),
        ([[LOAD, RESIZE, OTHER]], f'{PIPELINE} must have one LoadImageFromFile and then one'),
        ([[LOAD, PACK]], f'{PIPELINE} must have one LoadImageFromFile and then one Resize'),
        ([[LOAD, dict(type='RandomChoice', transforms=[[RESIZE], [OTHER]])]], '.type=RandomChoice'),
        ([[LOAD, RESIZE, dict(type='CenterCrop', crop_size=(8, 8))]], '2.type=CenterCrop'),
        ([[LOAD, RESIZE, dict(type='Pad', size_divisor=32)]], f'{PIPELINE}.2.type=Pad cannot'),
        ([[LOAD, RESIZE, dict(type='RandomFlip', prob=1.0)]], f'{PIPELINE}.2.type=RandomFlip'),
        ([[LOAD, dict(type='Resise')]], f'{PIPELINE}.1: KeyError'),
        ([[LOAD, RESIZE], [LOAD, OTHER]], 'datasets.1.pipeline to [480, 320]'),
        ([], 'test_dataloader.dataset.pipeline is missing'),
    ],
)  # fmt: skip
def test_other_pipelines(pipelines: list[list[dict]], named: str):
    with pytest.raises(program.ExportError) as caught:
        from_config.image_scale(config_of(*pipelines))
    assert named in str(caught.value)


def test_average_precision_of_the_truth_is_one(folder: Path):
    cfg = Config.fromfile(folder / 'config.py')
    # Boxes of an exported detector are in pixels of the resized image.
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 96)
    samples = [data['data_samples'] for data in DATASETS.build(cfg.test_dataloader.dataset)]
    truth = iter(samples)

    def detect(images):
        sample = next(truth)
        assert images[0].shape == (96, 96, 3)
        boxes = sample.gt_instances.bboxes.tensor * 96 / 128
        return [
            (boxes.numpy(), np.ones(len(boxes), np.float32), sample.gt_instances.labels.numpy())
        ]

    assert len(samples) == 3
    assert benchmark_runtimes.average_precision(detect, cfg) > 0.99


def test_benchmark(folder: Path, tmp_path: Path, monkeypatch, capsys):
    out, converted = tmp_path / 'rows.json', convert('single_scale')
    monkeypatch.setattr(program, 'trace', lambda model: None)
    for form, one in zip((onnx_graph, openvino_model), converted, strict=True):
        monkeypatch.setattr(form, 'convert', lambda traced, metadata, one=one: one)
    # In this process; tests/tools/analysis_tools measures memory in fresh ones.
    monkeypatch.setattr(benchmarks, 'in_fresh_process', lambda function, *args: function(*args))
    measured = []

    def peak_memory(call, *limit: float) -> float:
        measured.append(call())
        return float(len(measured))

    monkeypatch.setattr(benchmarks, 'peak_memory', peak_memory)
    assert 0 == run_tool(
        'analysis_tools/benchmark_runtimes.py', folder / 'config.py',
        '--checkpoint', folder / 'weights.pth', '--shapes', '64x80', '--threads', 1, '--rounds', 1,
        '--forms', 'onnxruntime', 'OpenVINO, int8', '--json', out,
    )  # fmt: skip
    result = json.loads(out.read_text())
    rows = result['rows']
    assert [row['form'] for row in rows] == ['PyTorch', 'onnxruntime', 'OpenVINO, int8']
    assert [row['memory_mib'] for row in rows] == [1, 2, 3]
    for row in rows:
        assert (row['size'], row['threads']) == ('64x80', 1)
        assert row['time_vs_torch'] == pytest.approx(row['latency_ms'] / rows[0]['latency_ms'])
    assert rows[2]['file_mib'] < rows[1]['file_mib']
    assert all(row['images_per_second'] > 0 for row in rows[1:])
    # The truth of what PyTorch and onnxruntime do alike.
    assert rows[1]['ap'] == pytest.approx(rows[0]['ap'], abs=0.1)
    assert result['settings']['rounds'] == 1
    assert '| OpenVINO, int8 |' in capsys.readouterr().out


def test_benchmark_against_rt_detr(tmp_path: Path, monkeypatch):
    """Latency alone, as a ratio to the same form of RT-DETR within a round."""
    rival = {'RT-DETR, PyTorch': lambda: time.sleep(0.2)}
    monkeypatch.setattr(benchmark_runtimes, 'rivals', lambda *arguments: rival)
    args = argparse.Namespace(forms=[], rounds=1, rt_detr=True)
    (row,) = benchmark_runtimes.measure(build('single_scale'), tmp_path, (64, 80), 1, args)
    assert row['form'] == 'PyTorch'
    assert row['rt_detr_ms'] >= 200
    assert row['time_vs_rt_detr'] == pytest.approx(row['latency_ms'] / row['rt_detr_ms'])
    assert 'memory_mib' not in row


def test_signals_arrive_after_openvino(exported: Path):
    """The first of two detectors is freed first: signal handlers need a stack nevertheless."""
    first, second = (
        runtimes.start_openvino(exported.with_suffix('.xml'), threads=1) for _ in range(2)
    )
    del first
    del second
    received = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: received.append(number))
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert received == [signal.SIGUSR1]


@pytest.mark.slow
def test_fused_rt_detr_is_rt_detr():
    transformers = pytest.importorskip('transformers')
    images, sizes = (
        torch.randint(0, 256, (1, 128, 128, 3), dtype=torch.uint8),
        torch.tensor([[128, 128]]),
    )
    torch.manual_seed(0)
    _, scores, _ = DeployedRTDETR()(images, sizes)
    torch.manual_seed(0)
    config = transformers.RTDetrConfig(num_labels=80)
    original = transformers.RTDetrForObjectDetection(config).eval()
    for module in original.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.ones_(module.weight)
    with torch.no_grad():
        logits = original(images.permute(0, 3, 1, 2).flip(1) / 255).logits
    expected = logits.sigmoid().flatten().topk(scores.size(1)).values
    torch.testing.assert_close(scores[0], expected, rtol=1e-4, atol=1e-5)


def test_benchmark_refuses(capsys):
    assert run_tool('analysis_tools/benchmark_runtimes.py', 'gone.py') == 2
    assert 'benchmark_runtimes.py: error: config gone.py does not exist' in capsys.readouterr().err


# Runs a script as if these packages were not installed.
WITHOUT = """
import runpy, sys
for name in ('torch', 'mmcv', 'mmengine', 'mmdet', 'mmsmca', 'onnx', 'nncf'):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_inference_example(exported: Path, tmp_path: Path, suffix: str):
    """It finds in the images of a batch what PyTorch does, resized by MMDetection."""
    images = {
        str(tmp_path / f'{i}.png'): cv2.resize(image, None, fx=1.7, fy=1.7)
        for i, image in enumerate(shapes_images())
    }
    for path, image in images.items():
        cv2.imwrite(path, image)
    command = [
        sys.executable, '-c', WITHOUT, ROOT / 'tools/infer_onnx.py', exported.with_suffix(suffix),
        *images, '--threshold', 0, '--batch-size', 2, '--threads', 1, '--streams', 2,
        '--precision', 'f32', '--out-dir', tmp_path / 'found',
    ]  # fmt: skip
    *lines, latency = subprocess.check_output(list(map(str, command)), text=True).splitlines()
    assert latency.startswith('latency: ') and 'ms per batch of 2 (median of 2); ' in latency
    drawn = {path.name for path in (tmp_path / 'found').iterdir()}
    assert drawn == {'0.png', '1.png', '2.png'}

    resize = Resize(scale=(128, 128), keep_ratio=True)
    resized = [resize(dict(img=image))['img'] for image in images.values()]
    model = build('single_scale')
    expected = comparison.run_torch(model, resized[:2]) + comparison.run_torch(model, resized[2:])
    for path, small, (boxes, scores, labels) in zip(images, resized, expected, strict=True):
        found = [line.split()[1:] for line in lines if line.startswith(path)]
        boxes = boxes * np.tile(np.divide(images[path].shape[1::-1], small.shape[1::-1]), 2)
        assert len(found) == len(boxes) == 25
        for detection in found:
            # Scores may be so close that the order is chance.
            sides = np.array(detection[1:], float)
            gaps = np.abs(np.column_stack((scores, boxes)) - sides).max(axis=1)
            assert detection[0] == SHAPES_CLASSES[labels[gaps.argmin()]]
            assert gaps.min() < 0.1


def test_inference_goes_on_without_bad_images(exported: Path, tmp_path: Path, monkeypatch, capsys):
    """What can be read is detected and drawn, whatever its name; the rest is named."""
    monkeypatch.chdir(tmp_path)
    good = ['photo.jfif', 'no_suffix', 'Bär 1.JPG', 'animation.gif', '\udcff.png']
    for name in good:
        cv2.imwrite('image.png', comparison.check_images()[0])
        Path('image.png').rename(name)
    cv2.imwrite('line.png', np.zeros((1, 500, 3), np.uint8))
    Path('folder').mkdir()
    Path('empty.jpg').touch()
    Path('text.jpg').write_text('no image')
    bad = {
        'folder': 'is a folder: name the images in it, for example folder/*.jpg',
        'gone.jpg': 'cannot be read: No such file or directory',
        'empty.jpg': 'is not an image that OpenCV can read',
        'text.jpg': 'is not an image that OpenCV can read',
        'line.png': 'has 1 x 500 pixels, resized 0 x 128: cut it into shorter pieces',
    }
    paths = [name for pair in zip(good, bad, strict=True) for name in pair]
    options = ['--threshold', 0, '--batch-size', 3, '--out-dir', 'found/there']
    assert run_tool('infer_onnx.py', exported, *paths, *options) == 2
    out, err = capsys.readouterr()
    assert len([line for line in out.splitlines() if not line.startswith('latency')]) == 25 * 5
    assert err.splitlines() == [
        f'infer_onnx.py: error: {name} {reason}' for name, reason in bad.items()
    ]
    assert {path.name for path in Path('found/there').iterdir()} == {
        'photo.jfif.png', 'no_suffix.png', 'Bär 1.JPG', 'animation.gif.png', '\udcff.png'
    }  # fmt: skip


def test_inference_example_refuses(exported: Path, tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path('other').mkdir()
    Path('link').symlink_to('.')
    for path in ('a.png', 'other/a.png', 'a'):
        Path(path).write_bytes(b'junk')
    for arguments, named in (
        (('a', 'a.png'), 'a cannot be loaded by onnxruntime'),
        (('gone.xml', 'a.png'), 'gone.xml cannot be loaded by OpenVINO'),
        ((exported, 'a.png', '--batch-size', 0), 'argument --batch-size: 0 is less than 1'),
        ((exported, 'a.png', '--streams', -1), 'argument --streams: -1 is less than 1'),
        ((exported, 'a.png', '--out-dir', '.'), '--out-dir . is the folder of a.png'),
        ((exported, 'a.png', '--out-dir', 'link'), '--out-dir link is the folder of a.png'),
        ((exported, 'a.png', 'other/a.png', '--out-dir', 'b'), 'would both be drawn as b/a.png'),
        ((exported, 'a', 'other/a.png', '--out-dir', 'b'), 'would both be drawn as b/a.png'),
        ((exported, 'a.png', '--out-dir', 'a'), '--out-dir a cannot be created: File exists'),
    ):
        try:
            assert run_tool('infer_onnx.py', *arguments) == 2
        except SystemExit as error:  # from argparse
            assert error.code == 2
        assert named in capsys.readouterr().err


def test_fewer_pairs_than_detections():
    model = build_detector(SINGLE_SCALE, dict(test_cfg=dict(max_per_img=300)))
    queries, classes = model.num_queries, model.bbox_head.num_classes
    scores, boxes = torch.rand(2, queries, classes), torch.rand(2, queries, 4)
    best = program.DeployedSMCA(model)._best(scores, boxes, torch.tensor([[9.0, 9.0], [9.0, 9.0]]))
    assert [x.shape[1] for x in best] == [queries * classes] * 3
    assert (best[1].diff() <= 0).all()
