"""The ONNX graph detects what the detector does, and is written only if so."""

import json
import logging
import runpy
import subprocess
import sys
from pathlib import Path

import benchmarks
import cv2
import numpy as np
import onnx
import pytest
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.registry import DATASETS, MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from utils import ROOT, build_detector, load_config

from mmsmca.datasets.shapes import SHAPES_CLASSES, make_shapes
from mmsmca.deployment import onnx_comparison, onnx_export, onnx_variants

SIZES = ((128, 128), (93, 150), (140, 71))  # height, width


@pytest.fixture(scope='module', autouse=True)
def quiet():
    """As the tool is; pytest would have PyTorch's exporter write all its traces down."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


@pytest.fixture(scope='module')
def trained(tmp_path_factory) -> Path:
    """Folder with ``config.py`` and ``epoch_15.pth``: 60 iterations, on ``data``."""
    folder = tmp_path_factory.mktemp('trained')
    data = folder / 'data'
    make_shapes(data, num_train=16, num_val=3, size=128, max_objects=2, variant='easy', seed=0)
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
def exported(trained: Path) -> Path:
    """The trained detector's graph, as the command writes it."""
    path = trained / 'smca.onnx'
    assert run_tool('export_onnx.py', trained / 'config.py', trained / 'epoch_15.pth', path) == 0
    return path


@pytest.fixture(scope='module')
def model(trained: Path) -> BaseModel:
    return init_detector(str(trained / 'config.py'), str(trained / 'epoch_15.pth'), device='cpu')


def shapes_images(data: Path) -> list[np.ndarray]:
    """A validation image in every one of the sizes."""
    paths = sorted((data / 'val').iterdir())
    return [
        cv2.resize(cv2.imread(str(path)), size[::-1])
        for path, size in zip(paths, SIZES, strict=True)
    ]


def assert_agree(model: BaseModel, session, images: list[np.ndarray]) -> None:
    """Batches of one and of two, padded, agree within the tolerances that are promised."""
    batches = onnx_comparison.check_batches(images)
    assert [len(batch) for batch in batches] == [1, 1, 1, 2, 2, 2]
    for batch in batches:
        difference = onnx_comparison.compare(model, session, batch)
        assert difference.unmatched == 0
        assert difference.scores <= 1e-4
        assert difference.boxes <= 0.05


def test_trained_detector(trained: Path, exported: Path, model: BaseModel):
    images = shapes_images(trained / 'data')
    assert_agree(model, onnx_comparison.start_session(onnx.load(exported)), images)
    # The comparison is of something: scores a hundred tolerances apart, boxes here and there.
    boxes, scores, _ = onnx_comparison.run_torch(model, images[:1])[0]
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
    metadata = {x.key: json.loads(x.value) for x in proto.metadata_props}
    assert metadata == dict(classes=list(SHAPES_CLASSES), scale=[128, 128])
    assert not list(exported.parent.glob('*.partial'))


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
JOINT_COVARIANCE = dict(
    encoder=dict(num_layers=2, layer_kinds=['intra', 'multi'], share_attention=False),
    decoder=dict(
        num_layers=1,
        layer_cfg=dict(
            cross_attn_cfg=dict(scale_selection='joint'),
            spatial_prior_cfg=dict(scale='covariance'),
        ),
    ),
)


@pytest.mark.parametrize(
    ('name', 'options'),
    [
        (MULTI_SCALE, FEW_LAYERS),
        (MULTI_SCALE, JOINT_COVARIANCE),
        (CONV, SMALL_CONV),
        (DINO, dict(encoder=dict(num_convs=1), decoder=dict(num_layers=2))),
    ],
    ids=['multi_scale', 'joint_covariance', 'conv', 'smca_dino'],
)
def test_other_architectures(name: str, options: dict):
    torch.manual_seed(0)
    model = build_detector(name, options)
    model.init_weights()
    session = onnx_comparison.start_session(onnx_export.export(model.eval(), {}))
    images = [
        cv2.resize(image, size[::-1])
        for image, size in zip(onnx_comparison.check_images(), SIZES, strict=True)
    ]
    assert_agree(model, session, images)


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
    session = onnx_comparison.start_session(disturb(onnx.load(exported), parameter, value))
    difference = onnx_comparison.compare(model, session, shapes_images(trained / 'data')[:1])
    assert not difference.tolerable


def test_comparison_notices_a_missing_detection(model: BaseModel, monkeypatch):
    images = onnx_comparison.check_images()[:1]
    ((boxes, scores, labels),) = onnx_comparison.run_torch(model, images)

    def without_best(session, images):
        return [(boxes[1:], scores[1:], labels[1:])]

    monkeypatch.setattr(onnx_comparison, 'run_onnx', without_best)
    assert not onnx_comparison.compare(model, None, images).tolerable


def test_what_differs_is_not_written(trained: Path, exported: Path, monkeypatch, capsys):
    disturbed = disturb(onnx.load(exported), 'bbox_head.fc_reg.bias', 0.05)
    monkeypatch.setattr(onnx_export, 'export', lambda model, metadata: disturbed)
    out = trained / 'different.onnx'
    arguments = trained / 'config.py', trained / 'epoch_15.pth', out
    assert run_tool('export_onnx.py', *arguments) == 1
    assert 'not written' in capsys.readouterr().err
    assert not list(trained.glob('different.onnx*'))


def test_overwriting(trained: Path, exported: Path, monkeypatch, capsys):
    proto = onnx.load(exported)
    monkeypatch.setattr(onnx_export, 'export', lambda model, metadata: proto)
    out = trained / 'there.onnx'
    out.write_bytes(b'precious')
    arguments = trained / 'config.py', trained / 'epoch_15.pth', out
    assert run_tool('export_onnx.py', *arguments) == 2
    assert 'there.onnx exists' in capsys.readouterr().err
    assert out.read_bytes() == b'precious'
    assert run_tool('export_onnx.py', *arguments, '--overwrite') == 0
    assert onnx.load(out) == proto


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
        ('deformable.py', [], 'deformable attention has no standard ONNX operator'),
        ('smca.py', ['model.decoder.num_layers=2'], 'decoder.layers.2'),
        ('smca.py', ['model.bbox_head.num_classes=80'], 'model.bbox_head.num_classes is 80'),
        ('smca.py', ['test_dataloader.dataset.pipeline.1.keep_ratio=False'],
         'no Resize with keep_ratio=True'),
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
    assert 'is no folder: create it first' in capsys.readouterr().err


def test_average_precision_of_the_truth_is_one(trained: Path, monkeypatch):
    cfg = Config.fromfile(trained / 'config.py')
    # Boxes of the graph are in pixels of the resized image.
    cfg.test_dataloader.dataset.pipeline[1].scale = (96, 96)
    samples = [data['data_samples'] for data in DATASETS.build(cfg.test_dataloader.dataset)]
    truth = iter(samples)

    def run_onnx(session, images):
        sample = next(truth)
        assert images[0].shape == (96, 96, 3)
        boxes = sample.gt_instances.bboxes.tensor * 96 / 128
        return [
            (boxes.numpy(), np.ones(len(boxes), np.float32), sample.gt_instances.labels.numpy())
        ]

    monkeypatch.setattr(onnx_variants, 'run_onnx', run_onnx)
    assert len(samples) == 3
    assert onnx_variants.average_precision(None, cfg) > 0.99


def test_operators_and_their_times(exported: Path):
    proto = onnx.load(exported)
    counts = onnx_variants.operator_counts(proto)
    # A guard behind every masked softmax would take as long as all the rest.
    assert 'IsNaN' not in counts and counts['Softmax'] >= 6
    assert counts['Conv'] > 10 and counts['MatMul'] > 10
    times = onnx_variants.operator_times(proto, onnx_comparison.check_images()[0], threads=1)
    assert times['Conv'] > 0 and list(times.values()) == sorted(times.values(), reverse=True)


def test_quantised_graph_is_near_and_smaller(trained: Path, exported: Path):
    proto = onnx.load(exported)
    int8 = onnx_variants.quantize(proto)
    assert onnx_variants.operator_counts(int8)['MatMulInteger'] > 10
    assert 'MatMulInteger' not in onnx_variants.operator_counts(proto)
    assert int8.ByteSize() < proto.ByteSize()
    images = shapes_images(trained / 'data')[:1]
    found = [
        onnx_comparison.run_onnx(onnx_comparison.start_session(graph, level=level), images)[0]
        for graph, level in ((proto, 'all'), (proto, 'none'), (int8, 'all'))
    ]
    np.testing.assert_allclose(found[1][1], found[0][1], atol=1e-4)
    np.testing.assert_allclose(found[2][1], found[0][1], atol=0.05)


def test_benchmark(trained: Path, exported: Path, tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / 'rows.json'
    proto = onnx.load(exported)
    monkeypatch.setattr(onnx_export, 'export', lambda model, metadata: proto)
    # In this process; tests/tools/analysis_tools measures memory in fresh ones.
    monkeypatch.setattr(benchmarks, 'in_fresh_process', lambda function, *args: function(*args))
    measured = []

    def peak_memory(call, limit: float) -> float:
        measured.append(call())
        return float(len(measured))

    monkeypatch.setattr(benchmarks, 'peak_memory', peak_memory)
    assert 0 == run_tool(
        'benchmark_onnx.py', trained / 'config.py', '--checkpoint', trained / 'epoch_15.pth',
        '--evaluate', '--shapes', '64x80', '--threads', 1, '--rounds', 1,
        '--variants', 'all', 'int8', '--json', out,
    )  # fmt: skip
    result = json.loads(out.read_text())
    names = ['PyTorch', 'onnxruntime, all', 'onnxruntime, int8']
    assert [row['runtime'] for row in result['rows']] == names
    assert [row['memory_mib'] for row in result['rows']] == [1, 2, 3]
    for row in result['rows']:
        assert (row['size'], row['threads']) == ('64x80', 1)
        ratio = row['latency_ms'] / result['rows'][0]['latency_ms']
        assert row['time_vs_torch'] == pytest.approx(ratio)
    assert set(result['ap']) == {'float32', 'int8'}
    assert result['settings']['hardware']
    said = capsys.readouterr().out
    assert 'nodes: ' in said and 'AP of the graph, int8: ' in said


def test_benchmark_refuses(tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run_tool('benchmark_onnx.py', 'gone.py') == 2
    assert 'benchmark_onnx.py: error: config gone.py does not exist' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run_tool('benchmark_onnx.py', 'gone.py', '--evaluate')
    assert '--evaluate needs --checkpoint' in capsys.readouterr().err


# Runs a script as if these packages were not installed.
WITHOUT = """
import runpy, sys
for name in ('torch', 'mmcv', 'mmengine', 'mmdet', 'mmsmca', 'onnx'):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


def infer(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, '-c', WITHOUT, ROOT / 'tools/infer_onnx.py', *arguments]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120)


def test_inference_example(trained: Path, exported: Path, model: BaseModel, tmp_path: Path):
    paths = []
    for i, image in enumerate(shapes_images(trained / 'data')):
        paths.append(str(tmp_path / f'{i}.png'))
        cv2.imwrite(paths[-1], cv2.resize(image, None, fx=1.7, fy=1.7))
    done = infer(
        exported, *paths, '--threshold', 0, '--batch-size', 2, '--threads', 1,
        '--out-dir', tmp_path / 'found',
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *lines, latency = done.stdout.splitlines()
    assert latency.startswith('latency: ') and 'a batch of 2 (median of 2)' in latency
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


def test_inference_example_refuses(exported: Path, tmp_path: Path):
    (tmp_path / 'junk').write_bytes(b'junk')
    for arguments, named in (
        ((exported, 'gone.jpg'), 'gone.jpg does not exist or is no image'),
        ((tmp_path / 'junk', 'gone.jpg'), 'junk cannot be loaded by onnxruntime'),
    ):
        done = infer(*arguments)
        assert done.returncode == 2
        assert named in done.stderr
        assert 'Traceback' not in done.stderr
