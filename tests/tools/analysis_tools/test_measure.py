"""What is measured of co-attentions and detectors, on every device and in every precision."""

import contextlib
from dataclasses import replace
from types import SimpleNamespace

import attention_error
import numerics
import pytest
import torch
from cases import Detector, Setting
from co_attention import IMPLEMENTATIONS, CoAttention
from measure import measure
from utils import ROOT

LEVEL = CoAttention('folded', ((4, 6),), queries=3, heads=2, channels=16, backend='eager')
JOINT = replace(LEVEL, grids=((8, 12), (4, 6)))
SETTING = Setting(2, threads=1)
SMALL = Detector(
    str(ROOT / 'configs/smca/smca_r50_8xb2-50e_coco.py'),
    shape=(64, 96),
    queries=20,
    cfg_options={
        'model.backbone.depth': 18,
        'model.neck.in_channels': [512],
        'model.decoder.num_layers': 1,
        'model.encoder.num_layers': 1,
    },
)
SMALL_DINO = Detector(
    str(ROOT / 'configs/smca_dino/smca-dino_r50_8xb2-12e_coco.py'),
    shape=(64, 96),
    queries=20,
    cfg_options={'model.decoder.num_layers': 1},
)


@pytest.mark.parametrize('padding', [0, 0.25])
@pytest.mark.parametrize('attention', [LEVEL, JOINT], ids=['level', 'joint'])
def test_implementations_agree(attention: CoAttention, padding: float):
    """FlexAttention, uncompiled, too; without prior it is another attention."""
    outputs = {
        name: replace(attention, implementation=name, padding=padding).build(SETTING).test()
        for name in IMPLEMENTATIONS  # FlexAttention on a CPU has no backward pass.
    }
    for name in ('folded', 'flex'):
        torch.testing.assert_close(outputs[name], outputs['explicit'], rtol=1e-4, atol=1e-5)
    assert (outputs['no_prior'] - outputs['explicit']).abs().max() > 0.01


def test_rows_of_co_attentions(one_process):
    subjects = {name: replace(JOINT, implementation=name) for name in IMPLEMENTATIONS}
    rows = measure(subjects, SETTING, 2, 8, references=['explicit', 'no_prior'])
    kernels = [row.get('kernel') for row in rows]
    assert kernels == [None, *['flash_attention_for_cpu'] * 2, None]
    assert rows[3]['outcome'].startswith('not available: NotImplementedError: FlexAttent')
    for row in rows[:3]:
        assert row['outcome'] == 'measured'
        assert row['train_ms'] > 0 and row['test_ms'] > 0 and row['train_mib'] >= 0
    assert rows[2]['train_time_vs_no_prior'] == rows[0]['train_time_vs_explicit'] == 1


@pytest.mark.parametrize('attention', [LEVEL, JOINT], ids=['level', 'joint'])
def test_errors_of_every_input(attention: CoAttention):
    rows = attention_error.measure(attention, SETTING)
    prior = ['centers', 'precisions'] + ([] if attention is LEVEL else ['gates'])
    for row in rows:
        assert row['outcome'] == 'measured'
        for name in ('output', 'query', 'key', 'value', *prior):
            assert 0 < row[name] < 1e-3
    in_half = attention_error.measure(attention, replace(SETTING, dtype='bfloat16'), ['explicit'])
    assert 1e-4 < in_half[0]['output'] < 0.1


def test_parity_of_a_detector(monkeypatch):
    """Errors are those of the precision, and what is wrong is seen."""
    (same,) = numerics.parity(SMALL_DINO, replace(SETTING, dtype='float64'))
    names = ('memory', 'scores', 'boxes', 'prior_grads', 'grads')
    assert same['outcome'] == 'measured'
    assert [same[name] for name in names] == [0] * 5
    (single,) = numerics.parity(SMALL_DINO, SETTING)
    assert all(0 < single[name] < 1e-2 for name in names)
    assert single['scores'] < 1e-5
    case, *_ = numerics._references.popitem()[1]
    broken = case.model.decoder.layers[0].spatial_prior
    numerics._references[repr((SMALL_DINO, 2))] = case, *_
    monkeypatch.setattr(broken, 'floor', broken.floor * 2)
    (wrong,) = numerics.parity(SMALL_DINO, SETTING)
    assert wrong['memory'] < 1e-5 and wrong['prior_grads'] > 0.01


def test_steps_of_training():
    (row,) = numerics.training(SMALL, replace(SETTING, dtype='bfloat16'), 2)
    assert row['outcome'] == 'measured' and row['last_loss'] > 0


def test_training_that_overflows_is_a_failure():
    losses = iter([3.0, 2.0, float('inf')])
    scales = iter([4.0, 2.0, 2.0, 2.0, 2.0])
    wrapper = SimpleNamespace(loss_scaler=SimpleNamespace(get_scale=lambda: next(scales)))
    case = SimpleNamespace(
        train=lambda: dict(loss=torch.tensor(next(losses))),
        optim_wrapper=wrapper,
        model=torch.nn.Linear(1, 1),
    )
    found = numerics.train(case, 2)
    assert found == dict(first_loss=3.0, last_loss=2.0, loss_scale=2.0, skipped_steps=1)
    with pytest.raises(ArithmeticError, match='the loss of step 1 is inf'):
        numerics.train(case, 1)
    case.model.weight.data.fill_(torch.nan)
    with pytest.raises(ArithmeticError, match='after 0 steps weight is not finite'):
        numerics.train(case, 0)


@pytest.fixture
def meta(monkeypatch) -> str:
    """A device without numbers, which refuses tensors of a CPU as a GPU does."""
    with pytest.raises(RuntimeError, match='device'):
        torch.ones(2, device='meta') + torch.ones(2)
    # It has no autocast.
    monkeypatch.setattr(torch, 'autocast', lambda *_, **__: contextlib.nullcontext())
    return 'meta'


@pytest.mark.parametrize('attention', [LEVEL, JOINT], ids=['level', 'joint'])
def test_co_attention_stays_on_its_device(attention: CoAttention, meta: str):
    setting = replace(SETTING, device=meta)
    for implementation in ('explicit', 'folded', 'no_prior'):
        case = replace(attention, implementation=implementation).build(setting)
        assert case.train().device.type == case.test().device.type == meta
    for dtype in ('float32', 'bfloat16', 'float64'):
        found = attention_error.compute(attention, replace(setting, dtype=dtype))
        assert all(x.device.type == meta for x in found.values())


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
    case = replace(SMALL, config=str(ROOT / 'configs' / config), cfg_options=options).build(SETTING)
    data = case.model.data_preprocessor(case.data, False)
    model = case.model.to(meta).eval()
    samples = [sample.to(meta) for sample in data['data_samples']]
    found = model(data['inputs'].to(meta), samples, mode='predict')
    assert all(sample.pred_instances.bboxes.device.type == meta for sample in found)
