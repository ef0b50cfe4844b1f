"""The benchmarks run, on known cases their numbers are right, and committed rows are explained."""

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import benchmark_attention
import benchmark_model
import benchmark_runtimes
import benchmarks
import pytest
import torch
from benchmark_attention import Attention
from benchmark_model import Detector
from benchmarks import Case, Setting
from utils import ROOT

SETTING = Setting(threads=1)
TINY = {
    'model.backbone.depth': 18,
    'model.neck.in_channels': [512],
    'model.num_queries': 100,
    'model.encoder.num_layers': 1,
    'model.decoder.num_layers': 1,
}
LEVEL = Attention('folded', ((4, 6),), queries=3)
LEVELS = Attention('folded', ((6, 8), (3, 4)), queries=3)


@pytest.mark.slow
def test_peak_memory_of_a_fresh_process():
    before = dict(os.environ)
    allocate = partial(torch.ones, 300 * 2**20, dtype=torch.uint8)
    mib = benchmarks.in_fresh_process(benchmarks.peak_memory, allocate)
    assert mib == pytest.approx(300, abs=5)
    assert os.environ == before


def test_ratios_are_to_the_first_and_an_error_ends_one_measurement_only(one_process):
    def sleeping(milliseconds: int) -> Case:
        return Case(*[partial(time.sleep, milliseconds / 1e3)] * 2)

    builds = dict(first=partial(sleeping, 10), bad=lambda: 1 / 0, slow=partial(sleeping, 30))
    first, bad, slow = benchmarks.measure(builds, SETTING, rounds=3)
    assert bad == dict(name='bad', error='ZeroDivisionError: division by zero')
    for mode in ('train', 'test'):
        assert first[f'{mode}_ratio'] == 1 and first[f'{mode}_ms'] == pytest.approx(10, rel=0.5)
        assert 2 < slow[f'{mode}_ratio'] < 4
        low, high = slow[f'{mode}_quartiles']
        assert low <= slow[f'{mode}_ratio'] <= high
        assert slow[f'{mode}_mib'] >= 0


def test_markdown_table():
    rows = [dict(name='a', ms=1.2345), dict(name='b', ms=(1234.5, 2)), dict(name='c|d')]
    columns = dict(name='what', ms='time', other='in no row')
    assert benchmarks.markdown_table(rows, columns).splitlines() == [
        '| what | time |',
        '| --- | --- |',
        '| a | 1.23 |',
        '| b | 1234 to 2 |',
        r'| c\|d | - |',
    ]


def test_attention_tool(tmp_path: Path, one_process, run_tool, capsys):
    out = tmp_path / 'rows.json'
    options = ['--queries', 5, '--threads', 1, '--rounds', 1, '--json', out]
    assert run_tool('benchmark_attention', '--grids', '3x4', *options) == 0
    rows = {row['name']: row for row in json.loads(out.read_text())['rows']}
    assert list(rows) == ['plain', 'explicit', 'folded']
    said = capsys.readouterr().out
    for name, row in rows.items():
        assert row['test_ms'] > 0 and f'| 3x4 | - | 5 | float32 | {name} |' in said
        assert row.keys() <= benchmark_attention.COLUMNS.keys()
    assert rows['plain']['train_ratio'] == 1


@pytest.mark.parametrize('attention', [LEVEL, LEVELS], ids=['one level', 'all levels'])
def test_errors_of_the_attention(attention: Attention):
    explicit = attention._replace(name='explicit')
    assert set(explicit.errors(Setting('float64', threads=1)).values()) == {0}
    names = ['output', 'query', 'key', 'value', 'centers', 'precisions']
    names += ['gates'] * (attention is LEVELS)
    found = attention.errors(SETTING)
    assert list(found) == names and all(0 < x < 1e-3 for x in found.values())
    assert 1e-4 < explicit.errors(Setting('bfloat16', threads=1))['output'] < 0.1


def test_model_tool(tmp_path: Path, one_process, run_tool, capsys):
    out = tmp_path / 'rows.json'
    configs = [
        'mmdet::detr/detr_r50_8xb2-150e_coco.py',
        ROOT / 'configs/smca/smca_r50_8xb2-50e_coco.py',
    ]
    options = [f'{key}={value}'.replace(' ', '') for key, value in TINY.items()]
    assert run_tool(
        'benchmark_model', *configs, '--shape', 64, 80, '--batch', 2, '--rounds', 1, '--threads', 1,
        '--operator-float32', '--parity', '--profile', '--json', out, '--cfg-options', *options,
    ) == 0  # fmt: skip
    result = json.loads(out.read_text())
    assert {'torch', 'hardware'} <= result['settings']['environment'].keys()
    first, second = result['rows']
    assert (first['config'], first['batch'], first['train_ratio']) == (configs[0], 2, 1)
    for row in (first, second):
        assert row['num_queries'] == 100 and row.keys() <= benchmark_model.COLUMNS.keys()
        assert min(row[key] for key in ('gflops', 'train_ms', 'test_ms')) > 0
    # Of a single round, the median of ratios is the ratio.
    assert second['train_ratio'] == pytest.approx(second['train_ms'] / first['train_ms'])
    exact, single = result['parity'][2:]
    assert all(exact[name] == 0 for name in benchmark_model.PARITY)
    assert all(0 < single[name] < 1e-2 for name in benchmark_model.PARITY)
    parts = {row['part']: row for row in result['profile'] if row['config'] == str(configs[1])}
    for part in ('backbone', 'neck', 'decoder.layers.cross_attn', 'bbox_head'):
        assert min(parts[part]['forward_ms'], parts[part]['backward_ms']) > 0
    assert parts['step']['forward_ms'] > 0 == parts['step']['backward_ms']
    of_backward = sum(row['backward_ms'] for row in parts.values())
    assert parts['backward']['forward_ms'] + parts['backward']['backward_ms'] < of_backward / 2
    assert f'| {configs[1]} |' in capsys.readouterr().out


def test_deformable_attention_in_float32():
    torch.manual_seed(0)
    shapes = torch.tensor([(4, 6), (2, 3)])
    value = torch.randn(2, 30, 2, 4, dtype=torch.bfloat16)
    points, weights = torch.rand(2, 5, 2, 2, 3, 2), torch.rand(2, 5, 2, 2, 3)
    found = benchmark_model.in_float32(value, shapes, points, weights)
    expected = benchmark_model.pytorch_code(value.float(), shapes, points, weights)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected.to(torch.bfloat16), rtol=0, atol=0)


def test_parity_sees_what_is_wrong(monkeypatch):
    config = str(ROOT / 'configs/smca_dino/smca-dino_r50_8xb2-12e_coco.py')
    options = {'model.encoder.num_layers': 1, 'model.decoder.num_layers': 1}
    model, _, data = Detector(config, (64, 80), 2, options).parts(SETTING)
    queries, expected = benchmark_model.outputs(model, data, None, Setting('float64', threads=1))
    broken = model.decoder.layers[0].spatial_prior
    monkeypatch.setattr(broken, 'floor', broken.floor * 2)
    _, found = benchmark_model.outputs(model, data, queries, SETTING)
    errors = {
        name: benchmark_model.relative_error(found[name], expected[name]) for name in expected
    }
    assert errors['memory'] < 1e-5 and errors['prior_grads'] > 0.01


@pytest.fixture
def meta(monkeypatch) -> str:
    """A device without numbers, which refuses tensors of a CPU as a GPU does."""
    with pytest.raises(RuntimeError, match='device'):
        torch.ones(2, device='meta') + torch.ones(2)
    # It has no autocast.
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: contextlib.nullcontext())
    return 'meta'


@pytest.mark.parametrize('attention', [LEVEL, LEVELS], ids=['one level', 'all levels'])
def test_attention_stays_on_its_device(attention: Attention, meta: str):
    setting = Setting(device=meta, threads=1)
    for name in ('plain', 'explicit', 'folded'):
        assert attention._replace(name=name).build(setting).test().device.type == meta
    assert all(x.device.type == meta for x in attention.compute(setting).values())


@pytest.mark.parametrize(
    'config',
    [
        'smca/smca_r50_8xb2-50e_coco.py',
        'smca/smca-multi-scale_r50_8xb1-50e_coco.py',
        'smca_dino/smca-dino_r50_8xb2-12e_coco.py',
    ],
)
def test_inference_stays_on_its_device(config: str, meta: str):
    options = {'model.decoder.num_layers': 1}
    model, _, data = Detector(str(ROOT / 'configs' / config), (64, 80), 2, options).parts(SETTING)
    data = model.data_preprocessor(data, False)
    samples = [sample.to(meta) for sample in data['data_samples']]
    found = model.to(meta).eval()(data['inputs'].to(meta), samples, mode='predict')
    assert all(sample.pred_instances.bboxes.device.type == meta for sample in found)


def test_without_a_gpu_it_is_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    with pytest.raises(SystemExit, match='--device cuda: PyTorch .* finds no GPU'):
        benchmarks.settings(SimpleNamespace(device='cuda'))


def committed_rows(found: object) -> Iterator[dict]:
    """Rows of a committed measurement: one run of a tool, or several by name."""
    if isinstance(found, dict):
        for key, value in found.items():
            yield from value if key == 'rows' else committed_rows(value)


@pytest.mark.parametrize(
    'path', sorted((ROOT / 'docs/results').glob('*.json')), ids=lambda path: path.stem
)
def test_committed_rows_are_those_of_a_tool(path: Path):
    """Of today's, by their keys, or of an earlier one: then file and page name its commit."""
    found = json.loads(path.read_text())
    rows = list(committed_rows(found))
    assert rows
    if 'commit' in found:
        pages = ''.join(page.read_text() for page in (ROOT / 'docs').glob('*.md'))
        named = re.findall(rf'results/{path.name}\)[^)]*?\scommit\s([0-9a-f]{{7}})\b', pages)
        assert found['commit'] in named
    else:
        tools = (benchmark_attention, benchmark_model, benchmark_runtimes)
        keys = set().union(*rows)
        assert any(keys <= tool.COLUMNS.keys() for tool in tools), keys
