"""Exported detectors detect what the detector does, and are written only if so."""

import json
import logging
import runpy
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import benchmarks
import cv2
import numpy as np
import onnx
import openvino
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.datasets.transforms import FixScaleResize
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch.export import ExportedProgram
from utils import ROOT, build_detector, load_config

import mmsmca.deployment.export
from mmsmca.datasets.shapes import SHAPES_CLASSES, Shapes
from mmsmca.deployment import comparison, onnx_graph, openvino_model, program, runtimes
from mmsmca.engine.quiet import quiet

METADATA = dict(classes=list(SHAPES_CLASSES), scale=[128, 128])
SIZES = ((128, 128), (93, 150), (140, 71))  # height, width


@pytest.fixture(scope='module', autouse=True)
def silence():
    """As the tool is; pytest would have PyTorch's exporter write all its traces down."""
    with quiet(logging.WARNING):
        yield


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """Folder with ``config.py`` and ``epoch_15.pth``: 60 iterations, on ``data``."""
    folder = tmp_path_factory.mktemp('trained')
    data = folder / 'data'
    Shapes(num_train=16, num_val=3, size=128, max_objects=2, seed=0).write(data)
    cfg = load_config('small/smca_r18w16_1xb8-11e_shapes128.py')
    loader = {'batch_size': 4, 'num_workers': 0, 'persistent_workers': False}
    for name in ('train', 'val', 'test'):
        cfg[f'{name}_dataloader'].update(loader)
        cfg[f'{name}_dataloader'].dataset.data_root = f'{data}/'
    cfg.merge_from_dict({'train_cfg.max_epochs': 15, 'work_dir': str(folder)})
    cfg.merge_from_dict({'default_hooks.checkpoint': dict(interval=15, save_best=None)})
    cfg.test_evaluator.ann_file = f'{data}/annotations/instances_val.json'
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.param_scheduler = []
    cfg.dump(folder / 'config.py')
    Runner.from_cfg(cfg).train()
    return folder


def run_tool(name: str, *arguments: object) -> int:
    """Run a tool in this process; its exit status."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', [name, *map(str, arguments)])
        main = runpy.run_path(str(ROOT / 'tools' / name))['main']
        return main()


@pytest.fixture(scope='module')
def model(trained: Path) -> BaseModel:
    return init_detector(str(trained / 'config.py'), str(trained / 'epoch_15.pth'), device='cpu')


@pytest.fixture(scope='module')
def traced(model: BaseModel) -> ExportedProgram:
    return program.trace(model)


def export(form: ModuleType, trained: Path, converted: object, *options: object) -> int:
    """Run a tool, which gets to see one conversion in place of its own."""
    name = 'export_onnx.py' if form is onnx_graph else 'export_openvino.py'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmsmca.deployment.export, 'trace', lambda model: None)
        patch.setattr(form, 'convert', lambda traced, metadata: converted)
        return run_tool(name, trained / 'config.py', trained / 'epoch_15.pth', *options)


@pytest.fixture(scope='module')
def graph(traced: ExportedProgram) -> onnx.ModelProto:
    return onnx_graph.convert(traced, METADATA)


@pytest.fixture(scope='module')
def exported(trained: Path, graph: onnx.ModelProto) -> Path:
    """The trained detector's graph, as the command writes it."""
    path = trained / 'smca.onnx'
    assert export(onnx_graph, trained, graph, path) == 0
    return path


@pytest.fixture(scope='module')
def ir(traced: ExportedProgram) -> openvino_model.IR:
    return openvino_model.convert(traced, METADATA)


@pytest.fixture(scope='module')
def exported_ir(trained: Path, ir: openvino_model.IR) -> Path:
    """The trained detector's IR, as the command writes it."""
    path = trained / 'smca.xml'
    assert export(openvino_model, trained, ir, path) == 0
    return path


def shapes_images(data: Path) -> list[np.ndarray]:
    """A validation image in every one of the sizes."""
    paths = sorted((data / 'val').iterdir())
    return [
        cv2.resize(cv2.imread(str(path)), size[::-1])
        for path, size in zip(paths, SIZES, strict=True)
    ]


def assert_agree(model: BaseModel, detect: runtimes.Detect, images: list[np.ndarray]) -> None:
    """Batches of one and of two, padded, agree within the tolerances that are promised."""
    batches = comparison.check_batches(images)
    assert [len(batch) for batch in batches] == [1, 1, 1, 2, 2, 2]
    for batch in batches:
        difference = comparison.compare(model, detect, batch)
        assert difference.unmatched == 0
        assert difference.scores <= 1e-4
        assert difference.boxes <= 0.05


def test_trained_detector(trained: Path, exported: Path, exported_ir: Path, model: BaseModel):
    images = shapes_images(trained / 'data')
    assert_agree(model, runtimes.start_onnxruntime(exported), images)
    assert_agree(model, runtimes.start_openvino(exported_ir, precision='f32'), images)
    # The comparison is of something: scores a hundred tolerances apart, boxes here and there.
    boxes, scores, _ = comparison.run_torch(model, images[:1])[0]
    assert np.ptp(scores) > 0.01
    assert np.ptp(boxes, axis=0).min() > 5


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
    assert not list(exported.parent.glob('*.partial'))


def test_ir_is_of_free_size(exported_ir: Path):
    read = openvino.Core().read_model(exported_ir)
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


def test_ir_keeps_co_attention_in_float32(ir: openvino_model.IR, exported_ir: Path):
    core = openvino.Core()
    compiled = core.compile_model(exported_ir, 'CPU', {'INFERENCE_PRECISION_HINT': 'bf16'})
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


MULTI_SCALE = 'small/smca-multi-scale_r18w16_1xb4-3ki_shapes192.py'
CONV = 'smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py'
DINO = 'small/smca-dino_r18w16_1xb4-3ki_shapes192.py'
SMALL_CONV = dict(
    num_queries=25,
    backbone=dict(depth=18, base_channels=16),
    neck=dict(in_channels=[32, 64, 128]),
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=1),
    test_cfg=dict(max_per_img=50),
)
FEW_LAYERS = dict(
    encoder=dict(num_layers=2, layer_kinds=['multi', 'intra']), decoder=dict(num_layers=1)
)
UNIFORM_COVARIANCE = dict(
    encoder=dict(num_layers=2, layer_kinds=['intra', 'multi'], share_attention=False),
    decoder=dict(
        num_layers=1,
        layer_cfg=dict(
            cross_attn_cfg=dict(scale_selection='uniform'),
            spatial_prior_cfg=dict(scale='covariance'),
        ),
    ),
)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        (MULTI_SCALE, FEW_LAYERS),
        (MULTI_SCALE, UNIFORM_COVARIANCE),
        (CONV, SMALL_CONV),
        (DINO, dict(encoder=dict(num_convs=1), decoder=dict(num_layers=2))),
    ],
    ids=['multi_scale', 'uniform_covariance', 'conv', 'smca_dino'],
)
def test_other_architectures(name: str, options: dict, tmp_path: Path):
    torch.manual_seed(0)
    model = build_detector(name, options)
    model.init_weights()
    traced = program.trace(model.eval())
    images = [
        cv2.resize(image, size[::-1])
        for image, size in zip(comparison.check_images(), SIZES, strict=True)
    ]
    graph = onnx_graph.convert(traced, {}).SerializeToString()
    assert_agree(model, runtimes.start_onnxruntime(graph), images)
    openvino_model.save(openvino_model.convert(traced, {}), tmp_path / 'ir.xml')
    assert_agree(model, runtimes.start_openvino(tmp_path / 'ir.xml', precision='f32'), images)


def disturb(proto: onnx.ModelProto, parameter: str, value: float) -> onnx.ModelProto:
    """The graph with ``value`` added to a parameter."""
    (tensor,) = [x for x in proto.graph.initializer if x.name.endswith(parameter)]
    values = onnx.numpy_helper.to_array(tensor) + np.float32(value)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return proto


@pytest.mark.parametrize(
    ('parameter', 'value'), [('bbox_head.fc_reg.bias', 0.01), ('bbox_head.fc_cls.bias', 0.01)]
)
def test_comparison_notices(trained: Path, exported: Path, model: BaseModel, parameter, value):
    disturbed = disturb(onnx.load(exported), parameter, value).SerializeToString()
    detect = runtimes.start_onnxruntime(disturbed)
    difference = comparison.compare(model, detect, shapes_images(trained / 'data')[:1])
    assert not difference.tolerable


def test_comparison_notices_a_missing_detection(model: BaseModel):
    images = comparison.check_images()[:1]
    ((boxes, scores, labels),) = comparison.run_torch(model, images)
    without_best = [(boxes[1:], scores[1:], labels[1:])]
    assert not comparison.compare(model, lambda images: without_best, images).tolerable


def test_what_differs_is_not_written(trained: Path, graph: onnx.ModelProto, capsys):
    disturbed = onnx.ModelProto()
    disturbed.CopyFrom(graph)
    disturb(disturbed, 'bbox_head.fc_reg.bias', 0.05)
    assert export(onnx_graph, trained, disturbed, trained / 'different.onnx') == 1
    assert 'not written' in capsys.readouterr().err
    assert not list(trained.glob('different.onnx*'))


def test_overwriting(trained: Path, graph: onnx.ModelProto, capsys):
    out = trained / 'there.onnx'
    out.write_bytes(b'precious')
    assert export(onnx_graph, trained, graph, out) == 2
    assert 'there.onnx exists' in capsys.readouterr().err
    assert out.read_bytes() == b'precious'
    assert export(onnx_graph, trained, graph, out, '--overwrite') == 0
    assert onnx.load(out) == graph


def test_ir_is_written_whole(ir: openvino_model.IR, tmp_path: Path, monkeypatch):
    path = tmp_path / 'smca.xml'
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


def test_int8(trained: Path, graph: onnx.ModelProto, ir: openvino_model.IR, capsys):
    images = shapes_images(trained / 'data')[:1]
    for form, converted in ((onnx_graph, graph), (openvino_model, ir)):
        whole, path = trained / f'float32{form.SUFFIX}', trained / f'int8{form.SUFFIX}'
        form.save(converted, whole)
        assert export(form, trained, converted, path, '--int8', 4) == 0
        assert 'as it runs here, int8 and ' in capsys.readouterr().out
        layers = quantised_layers(path)
        assert len(layers) > 20 and not quantised_layers(whole)
        assert not any('decoder' in name or 'bbox_head' in name for name in layers)
        if form is openvino_model:
            assert {openvino_model.origin(name) for name in layers} <= ir.fast
        (_, expected, _), (_, scores, _) = (
            form.start(file, precision='f32')(images)[0] for file in (whole, path)
        )
        assert 1e-5 < np.abs(scores - expected).max() < 0.05


def test_int8_needs_images(trained: Path, capsys):
    for options, named in (
        (['--int8', '0'], '--int8 0: at least one image'),
        (['--int8', '--cfg-options', 'train_dataloader.dataset.ann_file=gone.json'], 'gone.json'),
        (['--int8', '--cfg-options', 'train_dataloader.dataset.filter_cfg.min_size=1000'],
         'train_dataloader.dataset.filter_cfg drops 16 smaller than 1000 pixels'),
    ):  # fmt: skip
        assert export(openvino_model, trained, None, trained / 'no.xml', *options) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert line.startswith('export_openvino.py: error: ') and named in line
        assert not list(trained.glob('no.*'))


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
        ('smca.py', ['model.decoder.num_layers=2'], 'decoder.layers.2'),
        ('smca.py', ['model.bbox_head.num_classes=80'], 'model.bbox_head.num_classes is 80'),
        ('smca.py', ['test_dataloader.dataset.pipeline.1.keep_ratio=False'],
         'no Resize with scale and keep_ratio=True'),
    ],
)  # fmt: skip
def test_refusals(trained, tmp_path, monkeypatch, capsys, config, options, named):
    monkeypatch.chdir(tmp_path)
    Path('empty.py').write_text('')
    Path('detr.py').write_text(DETR)
    Path('deformable.py').write_text(DEFORMABLE)
    Path('smca.py').write_text(f"_base_ = '{ROOT}/configs/small/smca_r18w16_1xb8-11e_shapes128.py'")
    before = sorted(Path().iterdir())
    arguments = [config, trained / 'epoch_15.pth', 'out.onnx']
    if config in ('detr.py', 'deformable.py'):
        # Weights that do not fit would be refused before.
        other = MODELS.build(Config.fromfile(config).model)
        arguments[1] = trained / 'other.pth'
        torch.save(dict(state_dict=other.state_dict()), arguments[1])
    if options:
        arguments += ['--cfg-options', *options]
    assert run_tool('export_onnx.py', *arguments) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith('export_onnx.py: error: ')
    assert named in line
    assert sorted(Path().iterdir()) == before


def test_missing_checkpoint_and_folder(trained: Path, capsys):
    config = trained / 'config.py'
    assert run_tool('export_onnx.py', config, 'gone.pth', trained / 'x.onnx') == 2
    assert 'gone.pth does not exist' in capsys.readouterr().err
    assert run_tool('export_onnx.py', config, 'gone.pth', trained / 'no/folder/x.onnx') == 2
    assert 'is not a folder: create it first' in capsys.readouterr().err


def test_average_precision_of_the_truth_is_one(trained: Path):
    cfg = Config.fromfile(trained / 'config.py')
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
    assert comparison.average_precision(detect, cfg) > 0.99


def test_benchmark(trained: Path, graph, ir, tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / 'rows.json'
    monkeypatch.setattr(program, 'trace', lambda model: None)
    monkeypatch.setattr(onnx_graph, 'convert', lambda traced, metadata: graph)
    monkeypatch.setattr(openvino_model, 'convert', lambda traced, metadata: ir)
    # In this process; tests/tools/analysis_tools measures memory in fresh ones.
    monkeypatch.setattr(benchmarks, 'in_fresh_process', lambda function, *args: function(*args))
    measured = []

    def peak_memory(call, limit: float) -> float:
        measured.append(call())
        return float(len(measured))

    monkeypatch.setattr(benchmarks, 'peak_memory', peak_memory)
    assert 0 == run_tool(
        'analysis_tools/benchmark_runtimes.py', trained / 'config.py',
        '--checkpoint', trained / 'epoch_15.pth', '--evaluate',
        '--shapes', '64x80', '--threads', 1, '--rounds', 1,
        '--forms', 'onnxruntime', 'OpenVINO, int8', '--json', out, '--folder', tmp_path / 'files',
        '--plot', tmp_path / 'ap.png',
    )  # fmt: skip
    result = json.loads(out.read_text())
    names = ['PyTorch', 'onnxruntime', 'OpenVINO, int8']
    assert [row['form'] for row in result['rows']] == names
    assert [row['memory_mib'] for row in result['rows']] == [1, 2, 3]
    for row in result['rows']:
        assert (row['size'], row['threads']) == ('64x80', 1)
        ratio = row['latency_ms'] / result['rows'][0]['latency_ms']
        assert row['time_vs_torch'] == pytest.approx(ratio)
    assert result['rows'][2]['file_mib'] < result['rows'][1]['file_mib']
    assert all(row['images_per_second'] > 0 for row in result['rows'][1:])
    # The truth of what PyTorch and onnxruntime do alike.
    assert list(result['ap']) == names
    assert result['ap']['onnxruntime'] == pytest.approx(result['ap']['PyTorch'], abs=0.1)
    assert result['settings']['hardware']
    assert cv2.imread(str(tmp_path / 'ap.png')).std() > 1
    assert 'AP of OpenVINO, int8: ' in capsys.readouterr().out
    assert {path.name for path in (tmp_path / 'files').iterdir()} == {
        'float32.onnx', 'float32.xml', 'float32.bin', 'int8.xml', 'int8.bin'
    }  # fmt: skip


def test_benchmark_refuses(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_tool('analysis_tools/benchmark_runtimes.py', 'gone.py') == 2
    assert 'benchmark_runtimes.py: error: config gone.py does not exist' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_tool('analysis_tools/benchmark_runtimes.py', 'gone.py', '--evaluate')
    assert '--evaluate needs --checkpoint' in capsys.readouterr().err


# Runs a script as if these packages were not installed.
WITHOUT = """
import runpy, sys
for name in ('torch', 'mmcv', 'mmengine', 'mmdet', 'mmsmca', 'onnx', 'nncf'):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def infer(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, '-c', WITHOUT, ROOT / 'tools/infer_onnx.py', *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize('suffix', ['.onnx', '.xml'])
def test_inference_example(
    trained: Path, exported: Path, exported_ir: Path, model: BaseModel, tmp_path: Path, suffix
):
    paths = []
    for i, image in enumerate(shapes_images(trained / 'data')):
        paths.append(str(tmp_path / f'{i}.png'))
        cv2.imwrite(paths[-1], cv2.resize(image, None, fx=1.7, fy=1.7))
    done = infer(
        exported.with_suffix(suffix), *paths, '--threshold', 0, '--batch-size', 2, '--threads', 1,
        '--streams', 2, '--precision', 'f32', '--out-dir', tmp_path / 'found',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, latency = done.stdout.splitlines()
    assert latency.startswith('latency: ') and 'ms per batch of 2 (median of 2); ' in latency
    assert sorted(path.name for path in (tmp_path / 'found').iterdir()) == [
        '0.png', '1.png', '2.png'
    ]  # fmt: skip

    for path in paths:
        found = [line.split()[1:] for line in lines if line.startswith(path)]
        expected = inference_detector(model, path).pred_instances
        assert len(found) == len(expected) == 25
        others = list(zip(expected.labels, expected.scores, expected.bboxes, strict=True))
        for name, score, *box in found:
            # Scores may be so close that the order is chance.
            same = [
                i
                for i, (label, other_score, other_box) in enumerate(others)
                if name == SHAPES_CLASSES[label]
                and float(score) == pytest.approx(other_score.item(), abs=1e-3)
                and list(map(float, box)) == pytest.approx(other_box.tolist(), abs=0.3)
            ]
            assert same, f'{path}: {name} {score} {box} has no match'
            del others[same[0]]


def test_inference_example_refuses(exported: Path, exported_ir: Path, tmp_path: Path):
    junk, line = tmp_path / 'junk.xml', tmp_path / 'line.png'
    junk.write_bytes(b'junk')
    cv2.imwrite(str(line), np.zeros((1, 500, 3), np.uint8))
    for arguments, named in (
        ((exported, 'gone.jpg'), 'gone.jpg does not exist or is not an image'),
        ((exported_ir, line), 'line.png has 1 x 500 pixels, resized 0 x 128'),
        ((junk.rename(tmp_path / 'junk'), 'gone.jpg'), 'junk cannot be loaded by onnxruntime'),
        ((tmp_path / 'gone.xml', 'gone.jpg'), 'gone.xml cannot be loaded by OpenVINO'),
        ((exported, line, '--batch-size', 0), 'argument --batch-size: 0 is less than 1'),
        ((exported, line, '--streams', -1), 'argument --streams: -1 is less than 1'),
    ):
        done = infer(*arguments)
        assert done.returncode == 2
        assert named in done.stderr
        assert 'Traceback' not in done.stderr


RESIZE = dict(type='Resize', scale=(96, 64), keep_ratio=True)
LOAD = dict(type='LoadImageFromFile')


@pytest.mark.parametrize(
    ('pipeline', 'scale'),
    [
        ([LOAD, RESIZE], [96, 64]),
        ([dict(RESIZE, type='mmdet.Resize', scale=(64, 96))], [96, 64]),
        ([dict(RESIZE, type=FixScaleResize, scale=96)], [96, 96]),
        ([dict(type='RandomApply', transforms=[LOAD, RESIZE])], [96, 64]),
        ([dict(type='RandomChoice', transforms=[[LOAD], [RESIZE]])], [96, 64]),
    ],
    ids=['plain', 'scope', 'class_and_int', 'wrapper', 'lists'],
)
def test_scale_of_the_images(pipeline: list[dict], scale: list[int]):
    dataset = dict(type='RepeatDataset', times=1, dataset=dict(pipeline=pipeline))
    cfg = Config(dict(test_dataloader=dict(dataset=dataset)))
    assert program.image_scale(cfg) == scale


def test_no_scale_of_the_images():
    for pipeline, named in (
        ([LOAD, dict(RESIZE, keep_ratio=False)], 'no Resize with scale and keep_ratio=True'),
        ([dict(type='Resise')], 'Resise'),
    ):
        cfg = Config(dict(test_dataloader=dict(dataset=dict(pipeline=pipeline))))
        with pytest.raises(program.ExportError, match=named):
            program.image_scale(cfg)


def test_fewer_pairs_than_detections():
    model = build_detector(
        'small/smca_r18w16_1xb8-11e_shapes128.py', dict(test_cfg=dict(max_per_img=300))
    )
    queries, classes = model.num_queries, model.bbox_head.num_classes
    scores, boxes = torch.rand(2, queries, classes), torch.rand(2, queries, 4)
    best = program.DeployedSMCA(model)._best(scores, boxes, torch.tensor([[9.0, 9.0], [9.0, 9.0]]))
    assert [x.shape[1] for x in best] == [queries * classes] * 3
    assert (best[1].diff() <= 0).all()
