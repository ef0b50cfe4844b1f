"""Rows that are kept, parts and their process, memory, pages; and the tools that print them."""

import json
import math
import os
import runpy
import time
from functools import partial
from pathlib import Path

import benchmarks
import measure
import pytest
import torch
from benchmarks import Part, Section
from cases import Detector, Setting
from utils import ROOT


@pytest.mark.slow
def test_peak_memory_of_a_fresh_process():
    before = dict(os.environ)
    small, large = (
        benchmarks.in_fresh_process(
            benchmarks.peak_memory, partial(torch.ones, mib * 2**20, dtype=torch.uint8), 2
        )
        for mib in (300, 4000)
    )
    assert small == pytest.approx(300, abs=5) and large is None
    assert os.environ == before


def test_rows_are_kept_if_measured_alike(tmp_path: Path):
    path, settings = tmp_path / 'rows.json', dict(shape=(64, 80), torch='2.13', date='today')
    assert benchmarks.kept_rows(None, settings) == benchmarks.kept_rows(path, settings) == []
    row = dict(config='a.py', **settings)
    benchmarks.write_json(path, [row])
    (kept,) = benchmarks.kept_rows(path, dict(settings, date='tomorrow'))
    assert kept == dict(row, shape=[64, 80])
    with pytest.raises(
        ValueError, match=r'rows.json was measured with torch 2.13, not 2.14: choose'
    ):
        benchmarks.kept_rows(path, dict(settings, torch='2.14'))
    for content in ('[{', '{"a": 1}', '7'):
        path.write_text(content)
        with pytest.raises(ValueError, match='rows.json holds no rows'):
            benchmarks.kept_rows(path, settings)


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


def test_markdown_table():
    rows = [dict(name='a', ms=1.2345), dict(name='b', ms=1234.5), dict(name='c', ms=None), {}]
    assert benchmarks.markdown_table(rows, dict(name='what', ms='time')).splitlines() == [
        '| what | time |',
        '| --- | --- |',
        '| a | 1.23 |',
        '| b | 1234 |',
        '| c | - |',
        '| - | - |',
    ]


def rows_of(outcomes: list[str]) -> list[dict]:
    """A part whose outcome is the next of a list."""
    outcome = outcomes.pop(0)
    if outcome == 'interrupted':
        raise KeyboardInterrupt
    return [dict(outcome=outcome)]


def test_parts_continue_after_an_interruption_and_repeat_failures(tmp_path: Path, one_process):
    path, settings = tmp_path / 'rows.json', dict(torch='2.13')
    pages = []

    def measure_parts(*outcomes: str) -> list[str]:
        left = list(outcomes)
        planned = [Part('all', name, rows_of, (left,)) for name in 'abc']
        rows = benchmarks.measure_parts(planned, path, settings, wrote=pages.append)
        assert not left
        return [row['outcome'] for row in rows]

    with pytest.raises(KeyboardInterrupt):
        measure_parts('out of memory', 'interrupted')
    assert len(pages) == 1
    assert measure_parts('failed: of | it', 'measured') == [
        'out of memory',
        'failed: of | it',
        'measured',
    ]
    assert measure_parts('measured') == ['out of memory', 'measured', 'measured']
    assert measure_parts() == ['out of memory', 'measured', 'measured']
    sections = {'none': Section('None', '', {}), 'all': Section('All', 'Text.', {})}
    text = benchmarks.page('Title', sections, pages[2], settings)
    assert text.startswith('# Title\n\n- torch: 2.13\n\n## All\n\nText.\n\n| part | outcome |\n')
    assert r'| b | failed: of \| it |' in text


def test_a_process_for_the_parts_ends_with_its_time_and_after_a_failure(tmp_path: Path, capsys):
    path = tmp_path / 'rows.json'
    parts = [
        Part('all', 'empty', list, ()),
        Part('all', 'killed', os._exit, (1,)),
        Part('all', 'alive', list, ([dict(outcome='measured')],)),
        Part('all', 'endless', time.sleep, (600,)),
        Part('all', 'late', list, ()),
    ]
    rows = benchmarks.measure_parts(parts, path, {}, minutes=0.25)
    assert [row['part'] for row in rows] == ['killed', 'alive']
    assert rows[0]['outcome'].startswith('failed: BrokenProcessPool')
    assert '4/5 endless: not measured, as the 0.25 minutes are over' in capsys.readouterr().out
    assert json.loads(path.read_text()) == rows
    assert not benchmarks.active_children()


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    config = tmp_path / 'tiny.py'
    config.write_text(
        f"_base_ = '{ROOT}/configs/smca/smca_r50_8xb2-50e_coco.py'\n"
        'model = dict(backbone=dict(depth=18), neck=dict(in_channels=[512]), num_queries=20,\n'
        '             encoder=dict(num_layers=1), decoder=dict(num_layers=1))\n'
    )
    return config


def test_attention_tool(tmp_path: Path, one_process, run_tool, capsys):
    out, picture = tmp_path / 'new/rows.json', tmp_path / 'memory.png'
    done = run_tool(
        'benchmark_attention', '--grids', '3x4', '--queries', 5, '--rounds', 1,
        '--heads', 2, '--channels', 4, '--json', out, '--plot', picture,
    )  # fmt: skip
    assert done == 0
    rows = {row['name']: row for row in json.loads(out.read_text())}
    assert list(rows) == ['explicit', 'folded', 'no_prior']
    said = capsys.readouterr().out
    for name, row in rows.items():
        assert row['grid'] == '3x4'
        assert {'torch', 'hardware', 'date', 'threads', 'dtype', 'padding'} <= row.keys()
        assert row['test_ms'] > 0 and row['train_mib'] >= 0
        assert f'| 3x4 | 5 | {name} |' in said
        # Of a single round, the median of ratios is the ratio.
        for reference in ('explicit', 'no_prior'):
            ratio = row['train_ms'] / rows[reference]['train_ms']
            assert math.isclose(row[f'train_time_vs_{reference}'], ratio)
    assert picture.stat().st_size and picture.with_suffix('.svg').stat().st_size


@pytest.mark.slow
def test_model_tool(tmp_path: Path, tiny: Path, one_process, run_tool, monkeypatch, capsys):
    out, picture = tmp_path / 'rows.json', tmp_path / 'picture.png'
    other = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'
    arguments = [
        tiny, other, '--shape', 64, 80, '--batch', 2, '--queries', 100, '--rounds', 1,
        '--cfg-options', 'model.backbone.depth=18', 'model.neck.in_channels=[512]',
        'model.decoder.num_layers=1', '--json', out, '--plot', picture,
    ]  # fmt: skip
    assert run_tool('benchmark_model', *arguments) == 0
    said = capsys.readouterr().out
    assert 'hardware ' in said
    first, second = json.loads(out.read_text())
    assert (first['config'], first['batch'], first['queries']) == (str(tiny), 2, 100)
    for row in (first, second):
        assert row['num_queries'] == 100
        assert min(row[key] for key in ('gflops', 'train_mib', 'train_ms', 'test_ms')) > 0
        ratio = row['train_mib'] / first['train_mib']
        assert math.isclose(row['train_memory_vs_first'], ratio)
        # Of a single round, the quartiles are the ratio.
        assert row['train_quartiles_vs_first'] == [row['train_time_vs_first']] * 2
    assert first['train_time_vs_first'] == first['test_time_vs_first'] == 1
    assert second['parameters_m'] > first['parameters_m']
    assert '| DETR | 100 |' in said
    assert picture.stat().st_size and picture.with_suffix('.svg').stat().st_size

    monkeypatch.setattr(measure, 'interleaved_times', None)  # Nothing is measured again.
    assert run_tool('benchmark_model', *arguments) == 0
    assert capsys.readouterr().out.count('measured before') == 2
    before = out.read_text()
    assert run_tool('benchmark_model', tiny, other, '--rounds', 1, '--json', out) == 2
    assert 'rows.json was measured with shape [64, 80], not' in capsys.readouterr().err
    assert run_tool('benchmark_model', other, tiny, *arguments[2:]) == 2  # Ratios to another.
    assert out.read_text() == before


def test_model_tool_without_configs_measures_what_there_is():
    tool = runpy.run_path(str(ROOT / 'tools/analysis_tools/benchmark_model.py'))
    types = {
        title: Detector(name if '::' in name else str(ROOT / name))
        .load_config(Setting())
        .model.type
        for name, title in tool['DETECTORS'].items()
    }
    assert types['SMCA, DC5'] == types['SMCA, convolutional'] == 'SMCADETR'
    assert types['DETR'] == 'DETR' and types['DINO'] == 'DINO'


def test_missing_configs_are_named(run_tool, capsys):
    with pytest.raises(SystemExit):
        run_tool('benchmark_model', 'configs/gone.py')
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.endswith('error: config configs/gone.py does not exist')
