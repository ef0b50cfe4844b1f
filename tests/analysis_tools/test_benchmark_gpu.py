"""What runs on a GPU, where there is none: every part of ``make gpu``, small, and devices."""

import contextlib
import json
import runpy
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from utils import ROOT

from mmsmca.analysis import amp_training, attention_error, benchmarks, detector_cost, parts
from mmsmca.analysis.attention_cases import Setting, case_of
from mmsmca.analysis.parts import Part, Section

LEVEL = Setting(((3, 4),), queries=5, heads=2, channels=16)
JOINT = Setting(((4, 6), (2, 3)), queries=5, heads=2, channels=16)
NO_GPU = 'No GPU to measure: PyTorch '
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')


def run_tool(monkeypatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, 'argv', ['benchmark_gpu.py', *arguments])
    return runpy.run_path(str(ROOT / 'tools/benchmark_gpu.py'))['main']()


def call(function, *args):
    return function(*args)


@pytest.fixture
def one_process(monkeypatch) -> None:
    """Processes are started in other tests; what a CPU needs them for has no meaning then."""
    monkeypatch.setattr(benchmarks, 'in_own_process', call)
    monkeypatch.setattr(benchmarks, 'interleaved_times', once)
    peak_memory = benchmarks.peak_memory
    # The limit would stay with this process.
    monkeypatch.setattr(
        benchmarks, 'peak_memory', lambda run, device, limit_gib=None: peak_memory(run, device)
    )
    # Of this process, which goes on.
    monkeypatch.setattr(torch, 'set_num_threads', lambda number: None)


def once(calls: dict, rounds: int) -> dict[str, list[float]]:
    """A single timing each, without repetitions."""
    return {name: [benchmarks._seconds(call, 1)] * rounds for name, call in calls.items()}


def test_all_parts_run_and_are_kept(tmp_path: Path, one_process, monkeypatch, capsys):
    command = ['--device', 'cpu', '--small', '--backend', 'eager', '--out', str(tmp_path / 'new')]
    assert run_tool(monkeypatch, *command) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / 'new/gpu.json').read_text())
    by_section: dict[str, list[dict]] = {}
    for row in rows:
        by_section.setdefault(row['section'], []).append(row)
        assert {'torch', 'hardware', 'device', 'part'} <= row.keys()
        if row.get('implementation') == 'flex':
            assert row['forward_ms'] > 0
            if not torch.cuda.is_available():
                assert row['outcome'].startswith('not available: NotImplementedError: FlexAttent')
        else:
            assert row['outcome'] == 'measured'
    assert all(row['output_error'] < 0.01 for row in by_section['precision'])
    assert all(row['gradient_error'] < 0.03 for row in by_section['precision'])
    fused = [r for r in by_section['attention'] if r['implementation'] in ('folded', 'no_prior')]
    assert {row['kernel'] for row in fused} == {'flash_attention_for_cpu'}
    assert all(row['train_ms'] > 0 and row['test_ms'] > 0 for row in by_section['detector'])
    assert all(row['last_loss'] > 0 for row in by_section['training'])
    assert {row['mode'] for row in by_section['compile']} == {'training step', 'inference'}
    assert all(row['first_call_s'] > 0 for row in by_section['compile'])

    page = (tmp_path / 'new/gpu.md').read_text()
    for row in rows:
        assert f'| {row["part"]} |' in page
    # Parts are kept: nothing is measured again.
    monkeypatch.setattr(benchmarks, 'in_own_process', None)
    capsys.readouterr()
    assert run_tool(monkeypatch, *command) == 0
    said = capsys.readouterr().out
    assert 'being measured' not in said and said.count('measured before') == len(
        {row['part'] for row in rows}
    )
    assert run_tool(monkeypatch, *command[:-3], 'inductor', *command[-2:]) == 2
    assert 'gpu.json was measured with backend eager, not inductor' in capsys.readouterr().err


def rows_of(outcomes: list[str]) -> list[dict]:
    """A part whose outcome is the next of a list; of an exception, it is raised."""
    outcome = outcomes.pop(0)
    if outcome == 'interrupted':
        raise KeyboardInterrupt
    if outcome == 'broken':
        raise OSError('the process died | of memory')
    return [dict(outcome=outcome)]


def test_parts_go_on_after_an_interruption_and_repeat_failures(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(benchmarks, 'in_own_process', call)
    path, settings = tmp_path / 'rows.json', dict(torch='2.13')

    def measure(*outcomes: str) -> list[str]:
        left = list(outcomes)
        planned = [Part('all', name, rows_of, (left,)) for name in 'abc']
        rows = parts.measure_parts(planned, path, settings)
        assert not left
        text = parts.page('Title', {'all': Section('All', 'Text.', {})}, rows, settings)
        assert text.startswith(
            '# Title\n\n- torch: 2.13\n\n## All\n\nText.\n\n| part | outcome |\n'
        )
        assert all(f'| {row["part"]} | ' in text for row in rows)
        return [row['outcome'] for row in rows]

    with pytest.raises(KeyboardInterrupt):
        measure('out of memory', 'interrupted')
    failed = 'failed: OSError: the process died | of memory'
    assert measure('broken', 'measured') == ['out of memory', failed, 'measured']
    assert measure('measured') == ['out of memory', 'measured', 'measured']
    assert measure() == ['out of memory', 'measured', 'measured']


def test_an_error_ends_one_measurement_only():
    outcomes = []
    errors = [
        torch.OutOfMemoryError('CUDA out of memory. Tried to allocate 1 GiB'),
        RuntimeError('CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`'),
        ValueError('x' * 1000),
    ]
    for error in errors:
        row: dict = {}
        with benchmarks.outcome_in(row):
            raise error
        outcomes.append(row['outcome'])
    assert outcomes[:2] == ['out of memory'] * 2
    assert outcomes[2].startswith('failed: ValueError: xx') and len(outcomes[2]) == 300


def test_mixed_precision_that_overflows_is_a_failure():
    losses = iter([3.0, 2.0, float('inf')])
    scales = iter([4.0, 2.0, 2.0, 2.0, 2.0])
    wrapper = SimpleNamespace(loss_scaler=SimpleNamespace(get_scale=lambda: next(scales)))
    case = SimpleNamespace(
        train=lambda: dict(loss=torch.tensor(next(losses))),
        optim_wrapper=wrapper,
        model=torch.nn.Linear(1, 1),
    )
    found = amp_training.train(case, 2)
    assert found == dict(first_loss=3.0, last_loss=2.0, loss_scale=2.0, skipped_steps=1)
    with pytest.raises(ArithmeticError, match='the loss of step 1 is inf'):
        amp_training.train(case, 1)
    case.model.weight.data.fill_(torch.nan)
    with pytest.raises(ArithmeticError, match='after 0 steps weight is not finite'):
        amp_training.train(case, 0)


def test_environment_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'GPU')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: (9, 0))
    properties = SimpleNamespace(total_memory=2**34)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: properties)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    found = benchmarks.environment('cuda')
    assert (found['hardware'], found['gpu_memory_gib']) == ('GPU', 16)
    assert found['compute_capability'] == '9.0'
    assert found['driver'] is None
    assert {'cuda', 'cudnn', 'tf32_matrix_products', 'tf32_convolutions'} <= found.keys()


def test_driver(tmp_path: Path, monkeypatch):
    tool = tmp_path / 'nvidia-smi'
    tool.write_text('#!/bin/sh\necho 570.1\necho 570.1\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    assert benchmarks.driver_version() == '570.1'
    tool.write_text('#!/bin/sh\nexit 9\n')
    assert benchmarks.driver_version() is None


@pytest.fixture
def meta(monkeypatch) -> str:
    """A device without numbers, which refuses tensors of a CPU as a GPU does."""
    with pytest.raises(RuntimeError, match='device'):
        torch.ones(2, device='meta') + torch.ones(2)
    # It has no autocast.
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: contextlib.nullcontext())
    return 'meta'


@pytest.mark.parametrize('setting', [LEVEL, JOINT], ids=['level', 'joint'])
def test_co_attention_stays_on_its_device(setting: Setting, meta: str):
    setting = replace(setting, device=meta)
    for implementation in ('explicit', 'folded', 'no_prior'):
        case = case_of(implementation, setting)
        case.forward()
        case.forward_backward()
        assert case._run().device.type == meta
    # As attention_error.measure takes them.
    setting = replace(setting, images=1)
    attend = (
        attention_error.level_attention(setting)
        if setting.is_level
        else attention_error.joint_level_attention(setting)
    )
    for implementation in ('explicit', 'folded'):
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            assert all(x.device.type == meta for x in attend(implementation, dtype))


@pytest.mark.parametrize(
    'config',
    [
        'shapes/smca_r18_shapes.py',
        'shapes/smca-multi-scale_r18_shapes.py',
        'head_to_head/smca-dino_r18_head-to-head_shapes.py',
    ],
)
def test_inference_stays_on_its_device(config: str, meta: str):
    setting = detector_cost.Setting(shape=(64, 96), batch=2)
    case = detector_cost.Case(str(ROOT / 'configs' / config), setting)
    data = case.model.data_preprocessor(case.data, False)
    model = case.model.to(meta).eval()
    samples = [sample.to(meta) for sample in data['data_samples']]
    found = model(data['inputs'].to(meta), samples, mode='predict')
    assert all(sample.pred_instances.bboxes.device.type == meta for sample in found)


@needs_no_gpu
def test_without_a_gpu_it_is_one_line(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run_tool(monkeypatch) == 1
    captured = capfd.readouterr()
    assert captured.out == '' and captured.err.startswith(NO_GPU)
    assert captured.err.count('\n') == 1
    assert not list(tmp_path.iterdir())


@needs_no_gpu
def test_make_gpu_says_that_there_is_none(tmp_path: Path):
    """Of the Makefile, without its installation."""
    lines = (ROOT / 'Makefile').read_text().splitlines()
    rule = lines[lines.index('gpu: install') + 1]
    makefile = tmp_path / 'Makefile'
    makefile.write_text(f'gpu:\n{rule.replace("$(BIN)/python", sys.executable)}\n')
    # Where the tests themselves are called by make, the inner one would say which folder it enters.
    command = ['make', '--no-print-directory', '-f', makefile, 'gpu']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    assert done.stdout == ''
    said, of_make = done.stderr.splitlines()
    assert said.startswith(NO_GPU) and of_make.startswith('make')
