"""MMDetection with and without mmcv's compiled operators."""

import logging
import os
import pickle
import subprocess
import sys
from pathlib import Path

import mmsmca  # noqa: F401 - first: without it, mmcv.ops may lack its operators

# isort: split
import mmcv
import mmcv.ops
import pytest
import torch
from mmcv.ops import focal_loss, multi_scale_deform_attn
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from mmengine.logging import MMLogger
from torch.nn.functional import one_hot
from utils import ROOT

from mmsmca import operators
from mmsmca.datasets.shapes import Shapes
from mmsmca.errors import ConfigError


@pytest.fixture(autouse=True)
def pytorch_operators(monkeypatch):
    """mmcv calls the PyTorch code, also where its operators are there."""
    for name in 'nms', 'focal_loss', 'multi_scale_deform_attn':
        monkeypatch.setattr(sys.modules[f'mmcv.ops.{name}'], 'ext_module', operators)


def test_deformable_attention(monkeypatch):
    """Output and gradients are those of mmcv's own PyTorch code; that it is slow is said once."""
    torch.manual_seed(0)
    shapes = torch.tensor([[6, 4], [3, 2]])
    starts = torch.tensor([0, 24])
    inputs = [
        torch.randn(2, 30, 2, 3, dtype=torch.double),
        torch.rand(2, 5, 2, 2, 4, 2, dtype=torch.double),
        torch.rand(2, 5, 2, 2, 4, dtype=torch.double),
    ]
    value, points, weights = (tensor.requires_grad_() for tensor in inputs)
    said = []
    monkeypatch.setattr(MMLogger.get_current_instance(), 'handlers', [handler := logging.Handler()])
    handler.emit = said.append
    operators._say_slow.cache_clear()
    attention = multi_scale_deform_attn.MultiScaleDeformableAttnFunction
    for _ in range(2):
        output = attention.apply(value, shapes, starts, points, weights, 64)
    assert ['STACK=onedl' in record.getMessage() for record in said] == [True]

    reference = multi_scale_deform_attn.multi_scale_deformable_attn_pytorch(
        value, shapes, points, weights
    )
    torch.testing.assert_close(output, reference, rtol=0, atol=0)
    direction = torch.randn_like(output)
    for gradient, expected in zip(
        torch.autograd.grad(output, inputs, direction),
        torch.autograd.grad(reference, inputs, direction),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-15)


def test_focal_loss():
    torch.manual_seed(0)
    logits = torch.randn(6, 3, dtype=torch.double, requires_grad=True)
    # 3 is the background.
    target = torch.tensor([0, 1, 2, 3, 3, 0])
    loss = focal_loss.sigmoid_focal_loss(logits, target, 1.5, 0.3, None, 'none')
    reference = py_sigmoid_focal_loss(
        logits, one_hot(target, 4)[:, :3], gamma=1.5, alpha=0.3, reduction='none'
    )
    torch.testing.assert_close(loss, reference, rtol=0, atol=0)
    direction = torch.randn_like(loss)
    (gradient,) = torch.autograd.grad(loss, logits, direction)
    (expected,) = torch.autograd.grad(reference, logits, direction)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-15)


def slow_nms(boxes: list[list[float]], scores: list[float], threshold: float, offset: int):
    """Non-maximum suppression by its definition."""

    def area(x1: float, y1: float, x2: float, y2: float) -> float:
        return max(0, x2 - x1 + offset) * max(0, y2 - y1 + offset)

    kept: list[int] = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        (a, b, c, d), others = boxes[i], [boxes[j] for j in kept]
        overlaps = [area(max(a, x), max(b, y), min(c, z), min(d, w)) for x, y, z, w in others]
        unions = [
            area(a, b, c, d) + area(*other) - overlap
            for other, overlap in zip(others, overlaps, strict=True)
        ]
        if all(o <= threshold * union for o, union in zip(overlaps, unions, strict=True)):
            kept.append(i)
    return kept


@pytest.mark.parametrize('offset', [0, 1])
@pytest.mark.parametrize('number', [0, 1, 60])
def test_nms(offset, number):
    torch.manual_seed(number)
    corners = torch.rand(number, 2) * 20
    boxes = torch.cat([corners, corners + torch.rand(number, 2) * 20], 1)
    scores = torch.rand(number)
    dets, kept = mmcv.ops.nms(boxes, scores, 0.4, offset)
    assert kept.tolist() == slow_nms(boxes.tolist(), scores.tolist(), 0.4, offset)
    assert number < 60 or 5 < len(kept) < 55
    torch.testing.assert_close(dets, torch.cat([boxes, scores[:, None]], 1)[kept])


def test_other_operators_say_what_is_missing():
    module = operators._Operators(operators.NAME)
    with pytest.raises(ConfigError, match='of which deform_conv_forward is needed.*STACK=onedl'):
        module.deform_conv_forward(torch.zeros(1))
    assert module.nms is operators.nms
    assert not hasattr(module, '__path__')


@pytest.fixture
def complete_mmcv(tmp_path, monkeypatch) -> Path:
    """Where ``mmcv._ext`` is, as if it was compiled."""
    (tmp_path / '_ext.py').touch()
    monkeypatch.delitem(sys.modules, operators.NAME)
    monkeypatch.setattr(mmcv, '__path__', [str(tmp_path), *mmcv.__path__])
    return tmp_path / '_ext.py'


def test_a_complete_mmcv_stays(complete_mmcv):
    operators.provide_operators()
    assert operators.NAME not in sys.modules
    import mmcv._ext

    assert Path(mmcv._ext.__file__) == complete_mmcv
    operators.provide_operators()
    assert sys.modules[operators.NAME] is mmcv._ext


def test_import_changes_nothing_that_was_there():
    """Modules that were imported before, the environment and the process; and it is silent.

    MMDetection's detectors and a pickle of deformable attention find what they need.
    """
    script = """
import logging, os, pickle, random, signal, sys, warnings
with open(os.devnull, 'w') as sys.stdout:
    import mmdet.apis, mmdet.evaluation, mmengine.runner, mmcv.transforms, numpy, torch
sys.stdout = sys.__stdout__

def state():
    names = {
        (module, name): id(value)
        for module in list(sys.modules.values())
        for name, value in vars(module).items()
        if module.__name__.split('.')[0] in ('mmdet', 'mmcv', 'mmengine', 'torch')
    }
    process = [
        dict(os.environ), list(sys.argv), list(sys.path), os.getcwd(), list(warnings.filters),
        sys.excepthook, logging.root.level, list(logging.root.handlers),
        logging.root.manager.disable,
        torch.get_num_threads(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
        torch.random.get_rng_state().tolist(), random.getstate(), str(numpy.random.get_state()),
        [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)],
    ]
    return names, process

names, process = state()
import mmsmca
later, process_later = state()
detector = mmdet.registry.MODELS.get('DINO')
attention = pickle.loads(bytes.fromhex(sys.argv[1]))
assert process == process_later, [p for p in zip(process, process_later) if p[0] != p[1]]
changed = [key[1] for key, value in names.items() if later.get(key) != value]
print(*changed, detector.__name__, attention.embed_dims)
"""
    attention = mmcv.ops.MultiScaleDeformableAttention(embed_dims=16, num_heads=2)
    command = [sys.executable, '-c', script, pickle.dumps(attention).hex()]
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    # What checkpoints may hold, in PyTorch's own list of it.
    assert (done.stderr, done.stdout) == ('', '_marked_safe_globals_set DINO 16\n')


CONFIG = f"""
_base_ = '{ROOT / 'configs/small/smca-dino_r18w16_1xb4-2e_shapes128.py'}'
train_cfg = dict(max_epochs=1)
model = dict(
    num_queries=4, dn_cfg=dict(group_cfg=dict(num_dn_queries=2)), test_cfg=dict(max_per_img=4),
    encoder=dict(
        _delete_=True, type='SMCADeformableEncoder', num_layers=1,
        layer_cfg=dict(
            self_attn_cfg=dict(embed_dims=128, num_levels=3),
            ffn_cfg=dict(embed_dims=128, feedforward_channels=64))))
train_dataloader = dict(batch_size=2, num_workers=1, dataset=dict(indices=4))
"""


@pytest.mark.slow
def test_training_with_compiled_operators(tmp_path, monkeypatch):
    """Deformable attention trains to the same weights and finds the same, with and without."""
    # The stamp is what `make install` writes last: without it, packages may be missing.
    if not [*ROOT.glob('.venv-onedl/.installed-*')]:
        pytest.skip('no complete .venv-onedl: `make install STACK=onedl` compiles mmcv')
    compiled = ROOT / '.venv-onedl/bin/python'
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('PYTHONPATH', str(ROOT))
    Shapes(num_train=4, num_val=2).write('data/shapes128')
    Path('config.py').write_text(CONFIG)
    subprocess.run([compiled, '-c', 'import mmsmca, mmcv._ext; mmcv._ext.__file__'], check=True)
    for python, folder in (sys.executable, 'without'), (compiled, 'with'):
        command = [python, ROOT / 'tools/train.py', 'config.py', '--work-dir', folder]
        command += ['--cfg-options', f'val_evaluator.outfile_prefix={folder}/found']
        subprocess.run(command, check=True)
    weights, expected = (
        torch.load(f'{folder}/epoch_1.pth', weights_only=True)['state_dict']
        for folder in ('with', 'without')
    )
    torch.testing.assert_close(weights, expected, rtol=0, atol=0)
    assert Path('with/found.bbox.json').read_text() == Path('without/found.bbox.json').read_text()
