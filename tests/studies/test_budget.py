"""Budgets of studies: fitted schedules, calibrated times, and what is refused."""

import json
import os

import pytest
import torch
from mmengine.config import Config
from mmengine.optim import OptimWrapper
from mmengine.registry import PARAM_SCHEDULERS

from mmsmca.studies import calibration, console
from mmsmca.studies.budget import fit, fit_interval
from mmsmca.studies.calibration import conditions
from mmsmca.studies.record import Budget, StudyError
from mmsmca.studies.report.results import read_reports
from mmsmca.studies.study import digest, load_study, select, study_configs
from mmsmca.studies.sweep import Resources, Sweep

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
IN_ITERATIONS, IN_TIME = '1500-iterations', 'time-of-1500-iterations-of-slow'


def write_study(folder, budgets, config=CONFIG, **keys):
    (folder / 'small.py').write_text(config)
    experiments = [
        dict(name='slow', config='small.py'),
        dict(name='quick', config='small.py', cfg_options={'model.num_queries': 5}),
    ]
    content = dict(baseline='slow', seeds=[0, 1], experiments=experiments, budgets=budgets) | keys
    path = folder / 'study.py'
    path.write_text('\n'.join(f'{k} = {v!r}' for k, v in content.items() if v is not None))
    return path


def write_calibration(study, to='', **changes):
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


def cfg_with(*schedulers, **train_cfg):
    schedulers = [dict(scheduler, by_epoch=False) for scheduler in schedulers]
    return Config(
        dict(train_cfg=dict(max_iters=3000, **train_cfg), param_scheduler=list(schedulers))
    )


def test_schedule_is_fitted(tmp_path):
    """By hand: a third of 3,000 iterations, warm-up as it is."""
    (tmp_path / 'small.py').write_text(CONFIG)
    cfg = fit(Config.fromfile(tmp_path / 'small.py'), 1000, 'study')
    warm_up, drop = cfg.param_scheduler
    assert cfg.train_cfg == dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=100)
    assert (warm_up.begin, warm_up.end) == (0, 200)
    assert (drop.begin, drop.end, drop.milestones) == (0, 1000, [833])
    assert cfg.default_hooks.checkpoint.interval == 100


def evaluations(length, interval):
    """How often MMEngine's loop evaluates."""
    return sum(i % interval == 0 or i == length for i in range(1, length + 1))


def test_every_budget_has_as_many_evaluations():
    """Or is refused, which happens only to budgets of less than the number's square."""
    for interval in (250, 300, 700, 1000):
        count = evaluations(3000, interval)
        for iterations in range(1, 4000):
            if iterations >= count * (count - 1):
                assert -(-iterations // fit_interval(interval, 3000, iterations, '')) == count
    assert evaluations(1113, fit_interval(300, 3000, 1113, '')) == 10
    assert fit_interval(300, 3000, 1129, '') == 113
    with pytest.raises(StudyError, match='study: no interval divides a budget of 11 .* into 10'):
        fit_interval(300, 3000, 11, 'study')
    # MMEngine's default interval of 1,000 iterations is fitted too.
    assert fit(cfg_with(), 1500, 'study').train_cfg.val_interval == 500


# Each under a warm-up of 200 of 3,000 iterations, or with one of its own.
SCHEDULERS = {
    'cosine': dict(type='CosineAnnealingLR', begin=200, end=3000, T_max=2800),
    'cosine without an end': dict(type='CosineAnnealingLR', begin=200, T_max=2800),
    'cosine over all': dict(type='CosineAnnealingLR', T_max=3000),
    'milestones after the begin': dict(type='MultiStepLR', begin=200, milestones=[1400, 2100]),
    'milestones in a part': dict(type='MultiStepLR', end=2900, milestones=[1500]),
    'linear decay': dict(type='LinearLR', start_factor=1.0, end_factor=0.1, end=2500),
}


def rates(schedulers, iterations):
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
    cfg = cfg_with(*schedulers)
    before = rates(cfg.param_scheduler, 3000)
    after = rates(fit(cfg, 1500, 'study').param_scheduler, 1500)
    start = 200 if len(schedulers) == 2 else 0
    assert after[:start] == pytest.approx(before[:start])
    for part in (0.05, 0.3, 0.45, 0.6, 0.8, 0.9, 1):
        old = before[round(start + part * (2999 - start))]
        new = after[round(start + part * (1499 - start))]
        assert new == pytest.approx(old, abs=0.02), part


@pytest.mark.parametrize(
    ('cfg', 'message'),
    [
        (cfg_with(dict(type='StepLR', step_size=9)), r'study: param_scheduler\[0\]: .* to StepLR'),
        (cfg_with(dict(type='OneCycleLR', eta_max=1)), 'OneCycleLR: train with LinearLR, Multi'),
        (cfg_with(dict(type='CosineAnnealingMomentum', T_max=9)), 'to CosineAnnealingMomentum'),
        (cfg_with(val_begin=2000), 'train_cfg.val_begin cannot be fitted'),
        (cfg_with(dynamic_intervals=[(9, 9)]), 'train_cfg.dynamic_intervals cannot be fitted'),
        (Config(dict(train_cfg=dict(max_epochs=3))), 'its train_cfg has no max_iters'),
        (
            Config(
                dict(
                    train_cfg=dict(max_iters=9),
                    param_scheduler=dict(type='MultiStepLR', milestones=[2]),
                )
            ),
            r'param_scheduler\[0\] counts epochs: set by_epoch=False',
        ),
    ],
)
def test_schedules_that_cannot_be_fitted_are_refused(cfg, message):
    with pytest.raises(StudyError, match=message):
        fit(cfg, 1500, 'study')


def test_equal_iterations_and_equal_time(tmp_path):
    """What comes to the same is one run; 1.5 times as quick trains 1.5 times as long."""
    study = write_study(tmp_path, EACH)
    loaded = load_study(study, calibration=write_calibration(study))
    assert {(run.experiment, run.seed, run.length): run.budgets for run in loaded.runs} == {
        (name, seed, length): budgets
        for seed in (0, 1)
        for name, length, budgets in (
            ('slow', 1500, [IN_ITERATIONS, IN_TIME]),
            ('quick', 1500, [IN_ITERATIONS]),
            ('quick', 2250, [IN_TIME]),
        )
    }
    # A run that two budgets come to belongs to both.
    for budgets, lengths in (([IN_ITERATIONS], {1500}), ([IN_TIME], {2250}), (None, {1500, 2250})):
        assert {r.length for r in select(loaded, ['quick'], None, budgets)} == lengths
    assert [r.length for r in select(loaded, ['slow'], [0], [IN_TIME])] == [1500]
    with pytest.raises(StudyError, match='--budgets 1500: .* 1500-iterations, time-of-1500'):
        select(loaded, None, None, ['1500'])


WRONG = {
    'unknown key': ([dict(iterations=5, time='slow')], 'budgets.0.time: unknown key. Known: iter'),
    'fraction': ([dict(iterations=0.5)], 'budgets.0.iterations: .*integer, not 0.5'),
    'time of nobody': ([dict(iterations=5, time_of='fast')], "time_of: 'fast' is not an exp"),
    'twice': ([dict(iterations=1500)] * 2, "budgets: '1500-iterations' is listed twice"),
    'within the warm-up': ([dict(iterations=200)], 'too small: its warm-up takes 200'),
    'drop within the warm-up': ([dict(iterations=240)], 'would drop after 200'),
}


@pytest.mark.parametrize('budgets, message', WRONG.values(), ids=WRONG)
def test_wrong_budgets_are_refused(budgets, message, tmp_path):
    with pytest.raises(StudyError, match=message):
        load_study(write_study(tmp_path, budgets))


def test_runs_of_unknown_length(tmp_path, capsys):
    """A plan has them, with the reason; a sweep refuses them, and only them."""
    study = write_study(tmp_path, EACH)
    path = tmp_path / 'calibration.json'

    def sweep(**selected):
        loaded = load_study(study, calibration=path)
        runs = select(loaded, **selected)
        return Sweep(loaded, runs, tmp_path / 'work', tmp_path / 'train.py', Resources())

    def refused(message, **selected):
        with pytest.raises(StudyError, match=message) as error:
            console.run_sweep(sweep(**selected))
        assert str(path) in str(error.value) and '--calibrate measures it.' in str(error.value)

    refused('no such file. A budget in training time needs the time')
    console.print_plan(sweep())
    printed = ' '.join(capsys.readouterr().out.split())
    assert '? unknown' in printed.replace('│ ', '') and '--calibrate measures it.' in printed
    in_iterations = sweep(budgets=[IN_ITERATIONS]).runs
    assert all(run.id and run.length == 1500 for run in in_iterations) and len(in_iterations) == 4
    write_calibration(study, hardware=dict(cpu='abacus', cores=1, gpus=[]))
    refused('measured with different hardware: .*abacus')
    write_calibration(study, threads='64')
    refused('measured with different threads: 64, but .* here')
    write_calibration(study, versions=dict(torch='1.0'))
    refused('measured with different versions: .*1.0')
    content = json.loads(write_calibration(study).read_text())
    known = {run.id for run in sweep().runs}
    assert {run.id for run in in_iterations} < known and '' not in known
    content['experiments']['quick']['config'] = 'older'
    path.write_text(json.dumps(content))
    refused('lacks experiments, or has them with another config: quick. --cal')
    del content['experiments']['quick']
    path.write_text(json.dumps(content))
    refused('lacks experiments, or has them with another config: quick. --cal')
    assert all(run.id for run in sweep(experiments=['slow'], budgets=[IN_TIME]).runs)
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
    third = dict(name='third', config='small.py', cfg_options={'model.num_queries': 3})
    study, path = write_study(tmp_path, EACH), tmp_path / 'calibration.json'
    quick = "{'name': 'quick'"
    study.write_text(study.read_text().replace(quick, f'{third!r}, {quick}'))
    # What is selected, and what the budgets refer to.
    assert console.calibrate_study(study, path, ['quick']) == 0
    said = capsys.readouterr().out
    assert 'Other programs keep 1.7 cores busy' in said and 'quick: 50 ms per iteration' in said
    loaded = load_study(study, calibration=path)
    lengths = {run.experiment: run.length for run in loaded.runs if run.budgets != [IN_ITERATIONS]}
    assert measured == [25, 5] and lengths == dict(slow=1500, third=None, quick=7500)
    config = tmp_path / 'small.py'
    config.write_text(CONFIG.replace('=25', '=10'))
    assert console.calibrate_study(study, path) == 0
    assert measured == [25, 5, 10, 3]
    with pytest.raises(StudyError, match='--only thrid: the study has slow, third, quick.'):
        console.calibrate_study(study, path, ['thrid'])


def test_calibration_checks_the_experiments_first(tmp_path):
    """Missing data would end it with a trace, after minutes of measuring."""
    path = tmp_path / 'calibration.json'
    with pytest.raises(StudyError, match='^slow: the config has no train_dataloader'):
        console.calibrate_study(write_study(tmp_path, EACH), path)
    assert not path.exists()


def test_each_budget_has_its_report(tmp_path):
    study = write_study(tmp_path, EACH, chosen='Chosen on tune.')
    loaded = load_study(study, calibration=write_calibration(study, 'work'))
    loaded.write(tmp_path / 'work')
    reports = read_reports(tmp_path / 'work')
    assert list(reports) == [budget.name for budget in loaded.budgets]
    for budget, report in zip(loaded.budgets, reports.values(), strict=True):
        assert report.budget == budget.title and report.chosen == 'Chosen on tune.'
        expected = {run.dir for run in loaded.runs if budget.name in run.budgets}
        assert set(report.runs.name) == expected and len(expected) == 4
    assert Budget(iterations=1500).title == '1,500 iterations each'
