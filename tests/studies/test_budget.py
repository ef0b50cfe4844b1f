"""Budgets of studies: fitted schedules, calibrated times, and what is refused."""

import json
import os
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmsmca.studies import calibration, console
from mmsmca.studies.budget import fit
from mmsmca.studies.calibration import conditions
from mmsmca.studies.record import Budget, StudyError
from mmsmca.studies.report.results import read_reports
from mmsmca.studies.report.tables import calibration as calibration_table
from mmsmca.studies.study import digest, load_study, study_configs
from mmsmca.studies.sweep import Resources, Sweep, select

CONFIG = """
model = dict(num_queries=25)
train_cfg = dict(type='IterBasedTrainLoop', max_iters=3000, val_interval=300)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.01, by_epoch=False, begin=0, end=200),
    dict(type='MultiStepLR', begin=0, end=3000, by_epoch=False, milestones=[2500], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(interval=300))
"""
EACH = [dict(iterations=1500), dict(iterations=1500, time_of='slow')]


def write_study(folder: Path, budgets: list[dict] | None, config: str = CONFIG, **keys) -> Path:
    (folder / 'small.py').write_text(config)
    experiments = [
        dict(name='slow', config='small.py'),
        dict(name='quick', config='small.py', cfg_options={'model.num_queries': 5}),
    ]
    content = dict(baseline='slow', seeds=[0, 1], experiments=experiments, budgets=budgets) | keys
    path = folder / 'study.py'
    path.write_text('\n'.join(f'{k} = {v!r}' for k, v in content.items() if v is not None))
    return path


def write_calibration(study: Path, to: str = '', **changes) -> Path:
    seconds = dict(slow=0.3, quick=0.2)
    experiments = {
        name: dict(config=digest(cfg), seconds=seconds[name], quartiles=[0.1, 0.4])
        for name, cfg in study_configs(study).items()
    }
    content = dict(conditions(), iterations=30, experiments=experiments) | changes
    path = study.parent / to / 'calibration.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def fitted(study, calibrated=None) -> dict:
    runs = load_study(study, calibration=calibrated).runs
    return {(run.experiment, run.seed, run.cfg.train_cfg.max_iters): run for run in runs}


def test_schedule_is_fitted(tmp_path):
    """By hand: a third of 3,000 iterations, warm-up as it is."""
    (tmp_path / 'small.py').write_text(CONFIG)
    cfg = fit(Config.fromfile(tmp_path / 'small.py'), 1000, 'study')
    warm_up, drop = cfg.param_scheduler
    assert cfg.train_cfg == dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=100)
    assert (warm_up.begin, warm_up.end) == (0, 200)
    assert (drop.begin, drop.end, drop.milestones) == (0, 1000, [833])
    assert cfg.default_hooks.checkpoint.interval == 100


# Each under a warm-up of 200 of 3,000 iterations, or with one of its own.
SCHEDULERS = {
    'cosine': dict(type='CosineAnnealingLR', begin=200, end=3000, T_max=2800),
    'cosine without an end': dict(type='CosineAnnealingLR', begin=200, T_max=2800),
    'cosine over all': dict(type='CosineAnnealingLR', T_max=3000),
    'steps': dict(type='StepLR', begin=200, step_size=700),
    'restarts': dict(
        type='CosineRestartLR', begin=200, periods=[1400, 1400], restart_weights=[1, 1], eta_min=0
    ),
    'one cycle': dict(type='OneCycleLR', eta_max=0.5, total_steps=3000),
    'milestones after the begin': dict(type='MultiStepLR', begin=200, milestones=[1400, 2100]),
    'milestones in a part': dict(type='MultiStepLR', end=2900, milestones=[1500]),
    'linear decay': dict(type='LinearLR', start_factor=1.0, end_factor=0.1, end=2500),
    'polynomial': dict(type='PolyLR', begin=200, end=3000),
}


def rates(schedulers: list[dict], iterations: int) -> list[float]:
    """The learning rate of every iteration, as MMEngine schedules it."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    wrapper = OptimWrapper(optimizer)
    built = [PARAM_SCHEDULERS.build(dict(s, optimizer=wrapper)) for s in schedulers]
    found = []
    for _ in range(iterations):
        found.append(optimizer.param_groups[0]['lr'])
        for scheduler in built:
            scheduler.step()
    return found


@pytest.mark.parametrize('name', SCHEDULERS)
def test_every_schedule_keeps_its_shape(name):
    """At each part of the training after the warm-up the rate is what it was there."""
    own = SCHEDULERS[name]
    warm_up = dict(type='LinearLR', start_factor=0.01, begin=0, end=200)
    schedulers = [warm_up, own] if 'begin' in own else [own]
    cfg = Config(
        dict(
            train_cfg=dict(max_iters=3000),
            param_scheduler=[dict(s, by_epoch=False) for s in schedulers],
        )
    )
    before = rates(cfg.param_scheduler, 3000)
    after = rates(fit(cfg, 1500, 'study').param_scheduler, 1500)
    start = 200 if len(schedulers) == 2 else 0
    assert after[:start] == pytest.approx(before[:start])
    for part in (0.05, 0.3, 0.45, 0.6, 0.8, 0.9, 1):
        old = before[round(start + part * (2999 - start))]
        new = after[round(start + part * (1499 - start))]
        assert new == pytest.approx(old, abs=0.02), part


def test_schedulers_that_cannot_be_fitted_are_refused():
    cfg = Config(
        dict(
            train_cfg=dict(max_iters=3000),
            param_scheduler=[dict(type='ExponentialLR', gamma=0.99, by_epoch=False)],
        )
    )
    with pytest.raises(StudyError, match=r'study: param_scheduler\[0\]: .* to ExponentialLR'):
        fit(cfg, 1500, 'study')


def test_equal_iterations_and_equal_time(tmp_path):
    """What comes to the same is one run; 1.5 times as quick trains 1.5 times as long."""
    study = write_study(tmp_path, EACH)
    runs = fitted(study, write_calibration(study))
    assert set(runs) == {
        (name, seed, length)
        for seed in (0, 1)
        for name, length in (('slow', 1500), ('quick', 1500), ('quick', 2250))
    }
    names = {key[::2]: run.budgets for key, run in runs.items()}
    assert names == {
        ('slow', 1500): ['1500-iterations', 'time-of-1500-iterations-of-slow'],
        ('quick', 1500): ['1500-iterations'],
        ('quick', 2250): ['time-of-1500-iterations-of-slow'],
    }
    assert runs['quick', 0, 2250].cfg.param_scheduler[1].milestones == [1875]


def test_some_budgets_of_a_study(tmp_path):
    """A run that two budgets come to belongs to both."""
    study = write_study(tmp_path, EACH)
    study = load_study(study, calibration=write_calibration(study))
    lengths = [
        {run.length for run in select(study, ['quick'], None, budgets)}
        for budgets in (['1500-iterations'], ['time-of-1500-iterations-of-slow'], None)
    ]
    assert lengths == [{1500}, {2250}, {1500, 2250}]
    part = select(study, ['slow'], [0], ['time-of-1500-iterations-of-slow'])
    assert [run.length for run in part] == [1500]
    with pytest.raises(StudyError, match='--budgets 1500: .* 1500-iterations, time-of-1500'):
        select(study, None, None, ['1500'])


def test_without_budgets_runs_keep_their_digests(tmp_path):
    """A run's id is that of its config as it is, and names its folder."""
    study = write_study(tmp_path, None)
    cfg = study_configs(study)['quick']
    cfg.randomness = dict(seed=1)
    run = load_study(study).runs[-1]
    assert run.id == digest(cfg) and run.dir == f'quick/seed1-{run.id}'


def test_experiments_of_one_config_are_two(tmp_path):
    """Under another name it is trained again, with the same digest."""
    twins = [dict(name=name, config='small.py') for name in ('slow', 'again')]
    for budgets in (None, EACH[:1]):
        runs = load_study(write_study(tmp_path, budgets, experiments=twins)).runs
        assert [run.experiment for run in runs] == ['slow', 'again'] * 2
        assert runs[0].id == runs[1].id


WRONG = {
    'none': ([], 'give a list'),
    'no dict': ([1500], 'is not dict(iterations=...)'),
    'unknown key': ([dict(iterations=5, time='slow')], 'is not dict(iterations=...)'),
    'no iterations': ([dict(time_of='slow')], 'is not dict(iterations=...)'),
    'fraction': ([dict(iterations=0.5)], '0.5 is not an integer of at least 1'),
    'time of nobody': ([dict(iterations=5, time_of='fast')], "'fast' is not an experiment of"),
    'twice': ([dict(iterations=1500)] * 2, 'one is listed twice'),
    'within the warm-up': ([dict(iterations=200)], 'too small: its warm-up takes 200'),
    'drop within the warm-up': ([dict(iterations=240)], 'would drop after 200'),
}


@pytest.mark.parametrize('budgets, message', WRONG.values(), ids=WRONG)
def test_wrong_budgets_are_refused(budgets, message, tmp_path):
    with pytest.raises(StudyError, match=message.replace('(', r'\(').replace(')', r'\)')):
        load_study(write_study(tmp_path, budgets))


@pytest.mark.parametrize(
    'change, message',
    [
        (('max_iters=3000', 'max_epochs=3'), 'has no max_iters'),
        (('by_epoch=False, milestones', 'milestones'), r'param_scheduler\[1\] counts epochs'),
    ],
)
def test_epochs_are_refused(change, message, tmp_path):
    with pytest.raises(StudyError, match=message):
        load_study(write_study(tmp_path, EACH[:1], CONFIG.replace(*change)))


def test_calibration_is_checked(tmp_path):
    study = write_study(tmp_path, EACH)

    def refused(message):
        with pytest.raises(StudyError, match=message) as error:
            load_study(study, calibration=tmp_path / 'calibration.json')
        assert str(tmp_path / 'calibration.json') in str(error.value)

    refused(r'no such file.* python tools/sweep.py .*study.py --calibrate')
    path = write_calibration(study, hardware=dict(cpu='abacus', cores=1, gpus=[]))
    refused('measured with different hardware: .*abacus')
    write_calibration(study, threads='64')
    refused('measured with different threads: 64, but .* here')
    write_calibration(study, versions=dict(torch='1.0'))
    refused('measured with different versions: .*1.0')
    path = write_calibration(study)
    content = json.loads(path.read_text())
    content['experiments']['quick']['config'] = 'older'
    path.write_text(json.dumps(content))
    refused("'quick' has changed since")
    del content['experiments']['quick']
    path.write_text(json.dumps(content))
    refused("'quick' has not been measured")
    path.write_text('{')
    refused('cannot be read')


def test_calibration_measures_what_it_does_not_know(tmp_path, monkeypatch, capsys):
    """One experiment after the other; what was measured stays, what changed is measured again."""
    measured = []

    def in_own_process(function, cfg, timed):
        measured.append(cfg.model.num_queries)
        return [0.01 * cfg.model.num_queries] * timed

    monkeypatch.setattr(calibration, 'in_own_process', in_own_process)
    monkeypatch.setattr(console, 'check_experiments', lambda cfgs: None)  # There is no data.
    monkeypatch.setattr(os, 'getloadavg', lambda: (1.7, 0, 0))
    study, path = write_study(tmp_path, EACH), tmp_path / 'calibration.json'
    assert console.calibrate_study(study, path) == 0
    said = capsys.readouterr().out
    assert 'Other programs keep 1.7 cores busy' in said and 'quick: 50 ms per iteration' in said
    runs = fitted(study, path)
    assert measured == [25, 5] and ('quick', 0, 7500) in runs
    config = tmp_path / 'small.py'
    config.write_text(CONFIG.replace('=25', '=10'))
    assert console.calibrate_study(study, path) == 0
    assert measured == [25, 5, 10] and ('quick', 0, 3000) in fitted(study, path)


def test_only_what_is_selected_is_calibrated(tmp_path, monkeypatch):
    """And what the budgets refer to; the rest of the study then has no length, and needs none."""
    measured = []

    def in_own_process(function, cfg, timed):
        measured.append(cfg.model.num_queries)
        return [0.1] * timed

    monkeypatch.setattr(calibration, 'in_own_process', in_own_process)
    monkeypatch.setattr(console, 'check_experiments', lambda cfgs: None)  # There is no data.
    third = dict(name='third', config='small.py', cfg_options={'model.num_queries': 3})
    study, path = write_study(tmp_path, EACH), tmp_path / 'calibration.json'
    quick = "{'name': 'quick'"
    study.write_text(study.read_text().replace(quick, f'{third!r}, {quick}'))
    assert console.calibrate_study(study, path, ['quick']) == 0
    assert measured == [25, 5]
    loaded = load_study(study, calibration=path, only=['quick'])
    in_time = 'time-of-1500-iterations-of-slow'
    assert all(run.id for run in select(loaded, ['quick'], budgets=[in_time]))
    assert [run.length for run in select(loaded, ['third'], [0])] == [1500, None]
    with pytest.raises(StudyError, match="'third' has not been .*--calibrate --only third$"):
        load_study(study, calibration=path, only=['third'])
    with pytest.raises(StudyError, match='--only thrid: the study has slow, third, quick.'):
        console.calibrate_study(study, path, ['thrid'])


def test_calibration_checks_the_experiments_first(tmp_path):
    """Missing data would end it with a trace, after minutes of measuring."""
    path = tmp_path / 'calibration.json'
    with pytest.raises(StudyError, match='^slow: the config has no train_dataloader'):
        console.calibrate_study(write_study(tmp_path, EACH), path)
    assert not path.exists()


def test_a_plan_needs_no_calibration(tmp_path, capsys):
    """Runs of unknown length are in it, and nothing else of it changes."""
    study = write_study(tmp_path, EACH)
    plan = load_study(study, calibration=tmp_path / 'none.json', uncalibrated=True)
    runs = plan.runs
    console.print_plan(Sweep(plan, runs, tmp_path / 'work', tmp_path / 'train.py', Resources()))
    assert '? depends on times per iteration' in capsys.readouterr().out
    known = load_study(study, calibration=write_calibration(study)).runs
    assert [run.id for run in runs if run.id] == [run.id for run in known if run.length == 1500]
    unknown = [run for run in runs if not run.id]
    assert [(run.experiment, run.seed, run.length) for run in unknown] == [
        ('quick', 0, None),
        ('quick', 1, None),
    ]


def test_budgets_in_iterations_need_no_calibration(tmp_path):
    """Neither do those that are trained of a study with others; those others still do."""
    study, none = write_study(tmp_path, EACH), tmp_path / 'none.json'
    in_iterations, in_time = '1500-iterations', 'time-of-1500-iterations-of-slow'
    runs = select(
        load_study(study, calibration=none, wanted=[in_iterations]), budgets=[in_iterations]
    )
    assert all(run.id and run.length == 1500 for run in runs) and len(runs) == 4
    with pytest.raises(StudyError, match='no such file'):
        load_study(study, calibration=none, wanted=[in_iterations, in_time])


def test_each_budget_has_its_report(tmp_path):
    study = write_study(tmp_path, EACH, chosen='Chosen on tune.')
    loaded = load_study(study, calibration=write_calibration(study, 'work'))
    loaded.write(tmp_path / 'work')
    reports = read_reports(tmp_path / 'work')
    assert list(reports) == [budget.name for budget in loaded.budgets]
    for budget, report in zip(loaded.budgets, reports.values(), strict=True):
        assert report.budget == budget.title and report.chosen == 'Chosen on tune.'
        expected = {run.dir for run in loaded.runs if budget.name in run.budgets}
        assert [row[:2] for row in calibration_table(report).rows] == [
            ['slow', '300'],
            ['quick', '200'],
        ]
        assert {run.name for run in report.unfinished} == expected and len(expected) == 4
    assert Budget(1500).title == '1,500 iterations each'
