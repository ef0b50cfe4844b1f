"""On a CPU denormal numbers are zeros in every thread that runs SMCA, unless switched off.

This is a setting of a process, so each test asks one of its own, with two threads. It imports a
hook from this file, or runs the function that is named on the command line.
"""

import json
import os
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from onnx import TensorProto
from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info
from runs import SMALL, TINY_MODEL, small_config
from scripts import run_python
from utils import ROOT, build_detector

from mmsmca.datasets.shapes import Shapes
from mmsmca.denormals import denormals_flushed, denormals_kept
from mmsmca.deployment import runtimes

sys.path.append(str(ROOT / 'tools'))
import infer_onnx  # noqa: E402


class AskInBackward(torch.autograd.Function):
    """The identity; its gradient says whether denormal numbers are zeros."""

    @staticmethod
    def forward(ctx, x, answers):
        ctx.answers = answers
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.answers.append(denormals_flushed())
        return gradient, None


@HOOKS.register_module()
class AskHook(Hook):
    """Write the answer down after every iteration, in a file for every mode and process."""

    def __init__(self, folder):
        self.folder = Path(folder)

    def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode='train'):
        path = self.folder / f'{mode}_{os.environ.get("RANK", 0)}'
        path.write_text(json.dumps(denormals_flushed()))


def ask_around(build):
    """Print the answers once ``build`` was called: here, in a backward pass, in a new thread."""
    assert torch.get_num_threads() == 2
    answers = dict(backward=[], thread=[])
    built = build()
    answers['built'] = denormals_flushed()
    x = torch.ones(3, requires_grad=True)
    AskInBackward.apply(x, answers['backward']).sum().backward()
    thread = threading.Thread(target=lambda: answers['thread'].append(denormals_flushed()))
    thread.start()
    thread.join()
    print(json.dumps(answers))
    return built


def detector():
    ask_around(lambda: build_detector(SMALL))


def package():
    ask_around(lambda: None)


def inferencer():
    config = str(ROOT / 'configs' / SMALL)
    detect = ask_around(lambda: DetInferencer(config, device='cpu', show_progress=False))
    detect(np.zeros((64, 64, 3), np.uint8))
    print(json.dumps(denormals_flushed()))


def double():
    """A graph that doubles 4096 numbers, with the names of a detector's."""
    names = ['images', 'sizes', 'boxes', 'scores', 'labels']
    x, y, *outputs = (make_tensor_value_info(name, TensorProto.FLOAT, [4096]) for name in names)
    nodes = [make_node('Add', ['images', 'sizes'], [name]) for name in names[2:]]
    graph = make_graph(nodes, 'double', [x, y], outputs)
    model = make_model(graph, opset_imports=[make_opsetid('', 17)], ir_version=8)
    onnx.helper.set_model_props(model, {'classes': '[]', 'scale': '[64, 64]'})
    return model


def ask_session(run):
    denormal = np.full(4096, 2.0**-128, np.float32)
    doubled = run(denormal, denormal)[0]
    print(json.dumps(not doubled.view(np.int32).any().item()))


def exported():
    (session,) = runtimes.start_onnxruntime(double().SerializeToString()).args
    ask_session(lambda x, y: session.run(['boxes'], dict(images=x, sizes=y)))


def template():
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(double(), f'{folder}/double.onnx')
        ask_session(infer_onnx.start(f'{folder}/double.onnx', threads=2, streams=1)[0])


def run(*command, switch='1', processes=1):
    """Lines that a process of two threads prints."""
    variables = dict(OMP_NUM_THREADS=2, MMSMCA_FLUSH_DENORMAL=switch)
    done = run_python(*command, processes=processes, **variables)
    return done.stdout.splitlines()


@pytest.mark.parametrize(
    ('function', 'switch', 'flushed'),
    [('detector', '1', True), ('detector', '0', False), ('package', '1', False)],
)
def test_what_is_built_sets_it(function, switch, flushed):
    answers = json.loads(run(__file__, function, switch=switch)[-1])
    assert answers == dict(built=flushed, backward=[flushed], thread=[flushed])


def test_inferencer_sets_it():
    *_, answers, after = run(__file__, 'inferencer')
    assert json.loads(answers)['built']
    assert json.loads(after)


@pytest.fixture(scope='module')
def config(tmp_path_factory):
    """A step of training and one of evaluation, with the hook."""
    folder = tmp_path_factory.mktemp('denormals')
    Shapes(num_train=2, num_val=2, size=64).write(folder / 'data')
    cfg = small_config(folder / 'data', model=TINY_MODEL, work_dir=str(folder / 'run'))
    cfg.custom_imports.imports.append('test_denormals')
    cfg.custom_hooks = [dict(type='AskHook', folder=str(folder))]
    cfg.train_cfg.update(max_epochs=1, val_interval=1)
    for phase in ('train', 'val', 'test'):
        cfg[f'{phase}_dataloader'].batch_size = 1
    cfg.dump(folder / 'config.py')
    return folder / 'config.py'


def test_training_and_evaluation_of_two_processes_set_it(config):
    run(ROOT / 'tools/train.py', config, '--launcher', 'pytorch', processes=2)
    for name in ('train_0', 'train_1', 'val_0', 'val_1'):
        assert json.loads((config.parent / name).read_text()), name


def test_test_tool_sets_it(config):
    weights = build_detector(SMALL, TINY_MODEL).state_dict()
    torch.save(dict(state_dict=weights), config.parent / 'weights.pth')
    run(ROOT / 'tools/test.py', config, config.parent / 'weights.pth')
    assert json.loads((config.parent / 'test_0').read_text())


@pytest.mark.parametrize(
    ('function', 'switch', 'flushed'),
    [('exported', '1', True), ('exported', '0', False), ('template', '1', True)],
)
def test_onnxruntime_sets_it(function, switch, flushed):
    """In a process of its own: for the calling thread, its first session's setting counts."""
    assert json.loads(run(__file__, function, switch=switch)[-1]) is flushed


if __name__ == '__main__':
    globals()[sys.argv[1]]()


def test_denormals_are_kept_for_a_while():
    """In a thread that flushes them and in one that does not, which is then as before."""
    smallest = torch.tensor(2.0**-126)

    def flushed() -> bool:
        return not (smallest / 2).view(torch.int32).item()

    before = flushed()
    try:
        for setting in (True, False):
            torch.set_flush_denormal(setting)
            with denormals_kept():
                assert not flushed()
            assert flushed() == setting
    finally:
        torch.set_flush_denormal(before)
