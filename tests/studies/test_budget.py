"""Budgets of studies: fitted schedules, calibrated times, and what is refused."""

import json
import os
from pathlib import Path

import pytest
from mmengine.config import Config
from utils import ROOT

from mmsmca.studies import calibration, console
from mmsmca.studies.budget import Budget, fit
from mmsmca.studies.record import StudyError
from mmsmca.studies.report.results import read_study
from mmsmca.studies.report.tables import calibration as calibration_table
from mmsmca.studies.run_process import hardware
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
    content = dict(hardware=hardware(), iterations=30, experiments=experiments) | changes
    path = study.parent / to / 'calibration.json'
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def fitted(study, calibrated=None) -> dict:
    runs = load_study(study, calibration=calibrated).runs
    return {(run.experiment.name, run.seed, run.cfg.train_cfg.max_iters): run for run in runs}


def test_schedule_is_fitted(tmp_path):
    """By hand: a third of 3,000 iterations, warm-up as it is."""
    (tmp_path / 'small.py').write_text(CONFIG)
    cfg = fit(Config.fromfile(tmp_path / 'small.py'), 1000, 'study')
    warm_up, drop = cfg.param_scheduler
    assert cfg.train_cfg == dict(type='IterBasedTrainLoop', max_iters=1000, val_interval=100)
    assert (warm_up.begin, warm_up.end) == (0, 200)
    assert (drop.begin, drop.end, drop.milestones) == (0, 1000, [833])
    assert cfg.default_hooks.checkpoint.interval == 100


def test_a_later_scheduler_is_fitted(tmp_path):
    """Begin at the end of the warm-up stays there; a cosine's period shrinks with its end."""
    cfg = Config.fromfile(ROOT / 'configs/head_to_head/smca-dino_r18_head-to-head_shapes.py')
    cfg.param_scheduler[1] = dict(
        type='CosineAnnealingLR', begin=200, end=3000, T_max=2800, by_epoch=False
    )
    cosine = fit(cfg, 1500, 'study').param_scheduler[1]
    assert (cosine.begin, cosine.end, cosine.T_max) == (200, 1500, 1400)


def test_equal_iterations_and_equal_time(tmp_path):
    """What comes to the same is one run; 1.5 times as quick trains 1.5 times as long."""
    study = write_study(tmp_path, EACH)
    runs = fitted(study, write_calibration(study))
    assert set(runs) == {
        (name, seed, length)
        for seed in (0, 1)
        for name, length in (('slow', 1500), ('quick', 1500), ('quick', 2250))
    }
    names = {key[::2]: [b.name for b in run.budgets] for key, run in runs.items()}
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
        {run.cfg.train_cfg.max_iters for run in select(study, ['quick'], None, budgets).runs}
        for budgets in (['1500-iterations'], ['time-of-1500-iterations-of-slow'], None)
    ]
    assert lengths == [{1500}, {2250}, {1500, 2250}]
    part = select(study, ['slow'], [0], ['time-of-1500-iterations-of-slow'])
    assert [run.cfg.train_cfg.max_iters for run in part.runs] == [1500]
    with pytest.raises(StudyError, match='--budgets 1500: .* 1500-iterations, time-of-1500'):
        select(study, None, None, ['1500'])


def test_without_budgets_runs_keep_their_digests(tmp_path):
    """A run's id is that of its config as it is, and names its folder."""
    study = write_study(tmp_path, None)
    cfg = study_configs(study)['quick']
    cfg.randomness = dict(seed=1)
    run = load_study(study).runs[-1]
    assert run.id == digest(cfg) and run.dir_name == f'quick/seed1-{run.id}'


def test_experiments_of_one_config_are_two(tmp_path):
    """Under another name it is trained again, with the same digest."""
    twins = [dict(name=name, config='small.py') for name in ('slow', 'again')]
    for budgets in (None, EACH[:1]):
        runs = load_study(write_study(tmp_path, budgets, experiments=twins)).runs
        assert [run.experiment.name for run in runs] == ['slow', 'again'] * 2
        assert runs[0].id == runs[1].id


WRONG = {
    'none': ([], 'give a list'),
    'no dict': ([1500], 'is not dict(iterations=...)'),
    'unknown key': ([dict(iterations=5, time='slow')], 'is not dict(iterations=...)'),
    'no iterations': ([dict(time_of='slow')], 'is not dict(iterations=...)'),
    'fraction': ([dict(iterations=0.5)], '0.5 is no integer from 1 on'),
    'time of nobody': ([dict(iterations=5, time_of='fast')], "'fast' is no experiment of the st"),
    'twice': ([dict(iterations=1500)] * 2, 'one is named twice'),
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
    refused('measured on another machine.*abacus')
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


def test_each_budget_has_its_report(tmp_path):
    study = write_study(tmp_path, EACH, chosen='Chosen on tune.')
    loaded = load_study(study, calibration=write_calibration(study, 'work'))
    Sweep(loaded, tmp_path / 'work', tmp_path / 'train.py', Resources()).write_study()
    for budget in loaded.budgets:
        read = read_study(tmp_path / 'work', budget=budget.name)
        assert read.title == budget.title and read.chosen == 'Chosen on tune.'
        expected = {r.dir_name for r in loaded.runs if budget in r.budgets}
        assert [row[:2] for row in calibration_table(read).rows] == [
            ['slow', '300'],
            ['quick', '200'],
        ]
        assert {row['run'] for row in read.missing} == expected and len(expected) == 4
    assert Budget(1500).title == '1,500 iterations each'
