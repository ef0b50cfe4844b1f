"""The benchmarks' rows and ratios; what they measure depends on the machine."""

import json
import math
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from utils import ROOT

from mmsmca.analysis import benchmarks, detector_cost
from mmsmca.analysis.detector_cost import Setting, load_config
from mmsmca.engine import timing
from mmsmca.models.layers.attention import IMPLEMENTATIONS


def run_tool(*args: str | Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *map(str, args)], capture_output=True, text=True, cwd=ROOT, timeout=300
    )


def allocate(mib: int) -> float | None:
    """Peak of a call that keeps nothing, under a limit of 2 GiB."""
    return benchmarks.peak_memory(
        lambda: torch.ones(mib * benchmarks.MIB, dtype=torch.uint8), 'cpu', 2
    )


def test_paired_ratio_is_the_median_over_rounds():
    # The machine was ten times slower in the second round: for both.
    assert benchmarks.paired_ratio([3, 20, 3, 90], [1, 10, 2, 10]) == (3 + 2) / 2


def test_paired_spread_is_the_quartiles_of_the_rounds():
    assert benchmarks.paired_spread([1, 20, 3, 40, 5], [1, 10, 1, 10, 1]) == [2, 4]


def test_rows_are_kept_if_measured_alike(tmp_path: Path):
    path, settings = tmp_path / 'rows.json', dict(shape=(64, 80), torch='2.13', date='today')
    assert benchmarks.kept_rows(None, settings) == benchmarks.kept_rows(path, settings) == []
    row = dict(config='a.py', **settings)
    benchmarks.write_json(path, [row])
    (kept,) = benchmarks.kept_rows(path, dict(settings, date='tomorrow'))
    assert kept == dict(row, shape=[64, 80])
    with pytest.raises(ValueError, match=r'rows.json was measured with torch 2.13, not 2.14: name'):
        benchmarks.kept_rows(path, dict(settings, torch='2.14'))
    for content in ('[{', '{"a": 1}', '7'):
        path.write_text(content)
        with pytest.raises(ValueError, match='rows.json holds no rows'):
            benchmarks.kept_rows(path, settings)


def test_calls_are_timed_in_turns():
    order = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    calls = dict(slow=lambda: call('slow', 0.02), fast=lambda: call('fast', 0.01))
    times = benchmarks.interleaved_times(calls, rounds=3, min_seconds=0)
    assert order[-6:] == ['slow', 'fast'] * 3
    assert [len(times['slow']), len(times['fast'])] == [3, 3]
    assert min(times['slow']) >= 0.02


def test_short_calls_are_repeated(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing, 'timer', lambda: clock[0])

    def call() -> None:
        clock[0] += 0.01

    times = benchmarks.interleaved_times(dict(call=call), rounds=2, min_seconds=0.05)
    # Twice to warm up and to see how long it takes, then five times a round.
    assert clock[0] == pytest.approx(0.01 * (1 + 1 + 2 * 5))
    assert times['call'] == pytest.approx([0.01, 0.01])


def test_peak_memory_of_a_fresh_process():
    assert benchmarks.in_fresh_process(allocate, 300) == pytest.approx(300, abs=5)
    assert benchmarks.in_fresh_process(allocate, 4000) is None
    assert benchmarks.in_fresh_process(os.getpid) != os.getpid()


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


def test_attention_tool(tmp_path: Path):
    out, picture = tmp_path / 'new/rows.json', tmp_path / 'memory.png'
    done = run_tool(
        'tools/benchmark_attention.py', '--grids', '3x4', '--queries', '5', '--rounds', '1',
        '--heads', '2', '--channels', '4', '--json', out, '--plot', picture,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {row['implementation']: row for row in json.loads(out.read_text())}
    assert list(rows) == [*IMPLEMENTATIONS, 'no_prior']
    for name, row in rows.items():
        assert row['grid'] == '3x4'
        assert {'torch', 'hardware', 'date', 'threads', 'dtype', 'padding'} <= row.keys()
        assert row['denormals_flushed']
        assert row['forward_ms'] > 0
        assert row['extra_mib'] >= 0
        assert f'| 3x4 | 5 | {name} |' in done.stdout
        # Of a single round, the median of ratios is the ratio.
        for reference in ('explicit', 'no_prior'):
            ratio = row['forward_backward_ms'] / rows[reference]['forward_backward_ms']
            assert math.isclose(row[f'time_vs_{reference}'], ratio)
    hardware = f'{row["hardware"]}, 2 threads, denormal numbers flushed to zero'
    assert done.stdout.splitlines()[0] == hardware
    assert picture.stat().st_size and picture.with_suffix('.svg').stat().st_size


def test_model_tool(tmp_path: Path):
    tiny = tmp_path / 'tiny.py'
    tiny.write_text(
        f"_base_ = '{ROOT}/configs/shapes/smca_r18_shapes.py'\n"
        'model = dict(encoder=dict(num_layers=1), decoder=dict(num_layers=1))\n'
    )
    out, picture = tmp_path / 'rows.json', tmp_path / 'picture.png'
    done = run_tool(
        'tools/benchmark_model.py', tiny, 'mmdet::detr/detr_r18_8xb2-500e_coco.py',
        '--shape', '64', '80', '--batch', '2', '--queries', '100', '--rounds', '1', '--json', out,
        '--cfg-options', 'model.bbox_head.num_classes=80', '--plot', picture,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert 'hardware ' in done.stdout
    first, second = json.loads(out.read_text())
    assert (first['config'], first['batch'], first['queries']) == (str(tiny), 2, 100)
    for row in (first, second):
        assert row['num_queries'] == 100
        assert min(row[key] for key in ('gflops', 'train_mib', 'test_mib', 'test_ms')) > 0
        assert row['train_mib'] > row['test_mib']
        ratio = row['train_mib'] / first['train_mib']
        assert math.isclose(row['train_memory_vs_first'], ratio)
        # Of a single round, the quartiles are the ratio.
        assert row['train_time_quartiles'] == [row['train_time_vs_first']] * 2
    assert first['train_time_vs_first'] == first['test_time_vs_first'] == 1
    assert second['train_time_vs_first'] > 0
    assert second['parameters_m'] > first['parameters_m']
    assert f'| {second["detector"]} | 100 |' in done.stdout
    assert picture.stat().st_size and picture.with_suffix('.svg').stat().st_size


def test_model_tool_goes_on_after_the_last_row(tmp_path: Path, monkeypatch, capsys):
    out = tmp_path / 'rows.json'
    first, second, third = ('mmdet::a.py', 'mmdet::b.py', 'mmdet::c.py')
    tool = runpy.run_path(str(ROOT / 'tools/benchmark_model.py'))
    main, measured = tool['main'], []

    def measure(name: str, of_first: dict | None, *_: object) -> dict:
        measured.append((name, of_first and of_first['config']))
        if name == third and len(measured) == 3:
            raise KeyboardInterrupt
        return dict(config=name, train_mib=len(measured))

    monkeypatch.setattr(detector_cost, 'measure', measure)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, 'argv', ['benchmark_model.py', *arguments, '--json', str(out)])
        return main()

    with pytest.raises(KeyboardInterrupt):
        call(first, second, third)
    assert call(first, second, third) == 0
    assert measured == [(first, None), (second, first), (third, first), (third, first)]
    assert [row['train_mib'] for row in json.loads(out.read_text())] == [1, 2, 4]
    assert capsys.readouterr().out.count('measured before') == 2

    before = out.read_text()
    assert call(first, second, '--shape', '64', '80') == 2
    assert 'rows.json was measured with shape [800, 1333], not' in capsys.readouterr().err
    assert call(second, first) == 2  # Its ratios are to another.
    assert out.read_text() == before


def test_model_tool_without_configs_measures_what_there_is():
    tool = runpy.run_path(str(ROOT / 'tools/benchmark_model.py'))
    types = {
        title: load_config(name if '::' in name else str(ROOT / name), Setting()).model.type
        for name, title in tool['DETECTORS'].items()
    }
    assert types['SMCA, DC5'] == types['SMCA, convolutional'] == 'SMCADETR'
    assert types['DETR'] == 'DETR' and types['DINO'] == 'DINO'


def test_model_tool_names_missing_config():
    done = run_tool('tools/benchmark_model.py', 'configs/gone.py')
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith('error: config configs/gone.py does not exist')


def test_compile_tool(tmp_path: Path, monkeypatch, capsys):
    """Both modes, all parts together and each by itself; kept when called again."""
    out = tmp_path / 'compile.json'
    arguments = [
        'configs/shapes/smca_r18_shapes.py', '--shape', '64', '96', '--rounds', '1',
        '--backend', 'eager', '--json', str(out),
    ]  # fmt: skip
    monkeypatch.setattr(sys, 'argv', ['benchmark_compile.py', *arguments])
    # Processes are started in other tests.
    monkeypatch.setattr(benchmarks, 'in_own_process', lambda function, *args: function(*args))
    monkeypatch.setattr(benchmarks, 'in_fresh_process', lambda function, *args: function(*args))
    monkeypatch.setattr(torch, 'set_num_threads', lambda number: None)
    main = runpy.run_path(str(ROOT / 'tools/benchmark_compile.py'))['main']
    assert main() == 0, capsys.readouterr().err
    rows = json.loads(out.read_text())
    assert [row['parts'].count(',') for row in rows] == [2, 0, 0, 0] * 2
    for row in rows:
        assert row['outcome'] == 'measured'
        assert min(row['eager_ms'], row['compiled_ms'], row['first_call_s']) > 0
    capsys.readouterr()
    assert main() == 0
    assert capsys.readouterr().out.count('measured before') == 8
    monkeypatch.setattr(sys, 'argv', ['benchmark_compile.py', 'configs/gone.py'])
    with pytest.raises(SystemExit):
        main()
    assert 'config configs/gone.py does not exist' in capsys.readouterr().err
