"""``make gpu``, where there is no GPU: all of its parts, small, and what it refuses."""

import importlib.util
import json
import pickle
import runpy
import subprocess
import sys
from pathlib import Path

import measure
import pytest
import torch
from cases import Setting
from co_attention import CoAttention
from utils import ROOT

NO_GPU = 'No GPU to measure: PyTorch '
TOOL = str(ROOT / 'tools/analysis_tools/benchmark_gpu.py')
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')


@pytest.mark.slow
def test_all_parts_run_and_are_kept(tmp_path: Path, one_process, run_tool, monkeypatch, capsys):
    command = ['benchmark_gpu', '--device', 'cpu', '--small', '--backend', 'eager']
    command += ['--out', tmp_path / 'new']
    assert run_tool(*command) == 0, capsys.readouterr().err
    rows = json.loads((tmp_path / 'new/gpu.json').read_text())
    by_section: dict[str, list[dict]] = {}
    for row in rows:
        by_section.setdefault(row['section'], []).append(row)
        assert {'torch', 'hardware', 'device', 'part'} <= row.keys()
        if 'flex' in (row.get('implementation'), row.get('name')) or 'Flex' in row.get('name', ''):
            assert row['test_ms'] > 0
            assert row['outcome'].startswith('not available: NotImplementedError: FlexAttent')
        elif row.get('kernel') in ('EFFICIENT_ATTENTION', 'CUDNN_ATTENTION'):
            assert row['outcome'].startswith('not available: RuntimeError')
        else:
            assert row['outcome'] == 'measured', row
    assert all(row['prior_grads'] < 0.5 for row in by_section['parity'] if 'prior_grads' in row)
    assert all(row['output'] < 0.01 for row in by_section['precision'])
    fused = [r for r in by_section['attention'] if r['name'] in ('folded', 'no_prior')]
    assert {row['kernel'] for row in fused} == {'flash_attention_for_cpu'}
    assert all(row['train_ms'] > 0 and row['test_ms'] > 0 for row in by_section['detector'])
    assert all(row['train_images_per_s'] > 0 for row in by_section['detector'])
    assert [row['train_batch'] for row in by_section['batch']] == [2] * 4
    assert all(row['last_loss'] > 0 for row in by_section['training'])

    page = (tmp_path / 'new/gpu.md').read_text()
    assert all(f'| {row["part"]} |' in page for row in rows)
    monkeypatch.setattr(measure, 'interleaved_times', None)  # Nothing is measured again.
    capsys.readouterr()
    assert run_tool(*command) == 0
    said = capsys.readouterr().out
    assert 'being measured' not in said
    assert said.count('measured before') == len({row['part'] for row in rows})
    assert run_tool(*command[:-3], 'inductor', *command[-2:]) == 2
    assert 'gpu.json was measured with backend eager, not inductor' in capsys.readouterr().err


def test_what_matters_comes_first():
    parts = runpy.run_path(TOOL)['parts']('cuda', False, 'inductor')
    sections = list(dict.fromkeys(part.section for part in parts))
    assert sections[:4] == ['parity', 'precision', 'detector', 'share']
    assert set(sections) == set(runpy.run_path(TOOL)['SECTIONS'])
    names = [part.name for part in parts]
    assert len(set(names)) == len(names)
    assert names[0] == 'parity: SMCA-DINO, float64'
    first = next(name for name in names if name.startswith('detector'))
    assert first == 'detector: DINO and SMCA-DINO, 2 images, bfloat16'
    assert {part.arguments[1].device for part in parts if part.section != 'batch'} == {'cuda'}
    pickle.dumps([part.arguments for part in parts])  # They go to another process.


def test_what_is_missing_is_named(monkeypatch):
    find_spec = importlib.util.find_spec
    gone = ('mmdet', 'pycocotools')
    monkeypatch.setattr(
        importlib.util, 'find_spec', lambda name: None if name in gone else find_spec(name)
    )
    with pytest.raises(SystemExit, match='lacks mmdet, pycocotools: `make install` installs'):
        runpy.run_path(TOOL)


@needs_no_gpu
def test_without_a_gpu_it_is_one_line(tmp_path: Path, run_tool, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    assert run_tool('benchmark_gpu') == 1
    captured = capfd.readouterr()
    assert captured.out == '' and captured.err.startswith(NO_GPU)
    assert captured.err.count('\n') == 1
    assert not list(tmp_path.iterdir())


@needs_no_gpu
@pytest.mark.slow
def test_make_gpu_says_that_there_is_none():
    command = ['make', '--no-print-directory', 'gpu', f'PYTHON={sys.executable}', 'VENV=none']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode != 0
    said, of_make = done.stderr.splitlines()[-2:]
    assert said.startswith(NO_GPU) and of_make.startswith('make')


def test_largest_batch_is_what_fits():
    function = runpy.run_path(TOOL)['measure_largest_batch']
    tried = []

    def fits_seven(subjects: dict, setting: Setting, rounds: int, modes: list[str]) -> list[dict]:
        tried.append((*modes, setting.batch))
        fits = setting.batch < 8 or modes == ['test']
        return [dict(outcome='measured' if fits else 'out of memory')]

    function.__globals__['measure'] = fits_seven
    (row,) = function('SMCA', None, Setting(), 16)
    assert (row['train_batch'], row['test_batch'], row['outcome']) == (4, 16, 'measured')
    assert [batch for mode, batch in tried if mode == 'train'] == [1, 2, 4, 8]


def test_kernels_one_by_one(one_process):
    function = runpy.run_path(TOOL)['measure_kernel']
    attention = CoAttention('folded', ((4, 6),), queries=3, heads=2, channels=16)
    (math,), (cuda,) = (
        function(attention, Setting(), 1, kernel) for kernel in ('MATH', 'CUDNN_ATTENTION')
    )
    assert math['outcome'] == 'measured' and math['train_ms'] > 0 and math['output'] < 1e-5
    assert cuda['outcome'].startswith('not available: RuntimeError')
    assert (math['kernel'], cuda['kernel']) == ('MATH', 'CUDNN_ATTENTION')
