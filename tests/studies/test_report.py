"""Reports: numbers computed by hand, logs as runs leave them, files as reports leave them."""

import json
import math
import runpy
import sys

import pandas as pd
import pytest
from utils import ROOT

from mmsmca.studies.record import StudyError
from mmsmca.studies.report.figures import COLOURS, FORMATS, figures, write_figures
from mmsmca.studies.report.logs import METRICS, read_log
from mmsmca.studies.report.results import read_reports
from mmsmca.studies.report.statistics import Difference, Value, difference, holm, numbers, value
from mmsmca.studies.report.tables import tables
from mmsmca.studies.report.writers import latex

# Of the slower method every iteration takes 0.2 s, of the other 0.1 s; evaluated every 100.
APS = {
    'slow': {0: [0.10, 0.20, 0.30, 0.40], 1: [0.20, 0.20, 0.32, 0.44]},
    'fast': {0: [0.05, 0.10, 0.20, 0.30], 1: [0.09, 0.16, 0.24, 0.26]},
}
SECONDS = {'slow': 0.2, 'fast': 0.1}
SCALARS = '20260101_000000/vis_data/scalars.json'


def train_line(iteration, seconds=0.1, **more):
    line = dict(loss=1.0, time=seconds, data_time=0.01, iter=iteration, step=iteration)
    return line | more


def eval_line(ap, step=0, **more):
    """As MMEngine logs it: step 0 where the run counts iterations."""
    sizes = dict(zip(METRICS.values(), (ap, 1.5 * ap, 0.8 * ap, -1, ap, 1.2 * ap), strict=True))
    return {**sizes, 'data_time': 0.02, 'time': 0.05, 'step': step} | more


def write_log(folder, lines, timestamp='20260101_000000'):
    path = folder / timestamp / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


def write_config(scalars, seed, name='m', train_cfg=''):
    train_cfg = train_cfg or "dict(type='IterBasedTrainLoop', max_iters=400, val_interval=100)"
    scalars.with_name('config.py').write_text(
        f'train_cfg = {train_cfg}\n'
        'default_hooks = dict(logger=dict(interval=50))\n'
        f'randomness = dict(seed={seed})\nmethod = {name!r}\n'
        f"work_dir = '{scalars.parents[2]}'\n"
    )


def write_run(folder, name, seed, aps, finished=True):
    lines = []
    for k, ap in enumerate(aps, 1):
        lines += [train_line(100 * k - 50, SECONDS.get(name, 0.1), memory=2048)]
        lines += [train_line(100 * k, SECONDS.get(name, 0.1), memory=2048), eval_line(ap)]
    write_config(write_log(folder, lines), seed, name)
    attempt = dict(git='abc', versions=dict(torch='2.13'), hardware=dict(cpu='x'))
    (folder / 'run.json').write_text(json.dumps(dict(attempts=[attempt])))
    if finished:
        metrics = {key: eval_line(aps[-1])[metric] for key, metric in METRICS.items()}
        (folder / 'result.json').write_text(json.dumps(dict(metrics=metrics | dict(AP_S=None))))


def read_study(folder, baseline=None):
    (report,) = read_reports(folder, baseline).values()
    return report


def numbers_of(report, levels=None):
    return {of.name: of for of in numbers(report, levels)}


def tables_of(report, levels=None):
    return {table.name: table for table in tables(report, numbers(report, levels))}


def seeds_of(report):
    return {name: report.runs_of(name).seed.tolist() for name in report.experiments}


@pytest.fixture
def study_dir(tmp_path):
    """Two experiments of two seeds, as a sweep leaves them, and a run of an older definition."""
    runs = []
    for name, seeds in APS.items():
        for seed, aps in seeds.items():
            write_run(tmp_path / f'{name}/seed{seed}-1', name, seed, aps)
            runs.append(dict(experiment=name, seed=seed, id='1', budgets=[]))
    write_run(tmp_path / 'fast/seed0-0', 'fast', 0, [0.9] * 4)
    experiments = [dict(name=name, configs=['x.py'], cfg_options={}) for name in APS]
    definition = dict(name='pair', baseline='slow', experiments=experiments, runs=runs)
    definition |= dict(seeds=[0, 1], budgets=[], chosen='')
    (tmp_path / 'study.json').write_text(json.dumps(definition))
    return tmp_path


def add_runs(study_dir, *runs):
    definition = json.loads((study_dir / 'study.json').read_text())
    definition['runs'] += [dict(experiment=e, seed=s, id='1', budgets=[]) for e, s in runs]
    (study_dir / 'study.json').write_text(json.dumps(definition))


def close(a, mean, std, n):
    same_std = a.std is None if std is None else math.isclose(a.std, std, rel_tol=1e-12)
    return math.isclose(a.mean, mean, rel_tol=1e-12) and same_std and a.n == n


def test_mean_and_deviation_by_hand():
    # Mean 2.5; squared distances 2.25 + 0.25 + 0.25 + 2.25 = 5 over n - 1 = 3.
    assert close(value(pd.Series([1.0, 2.0, 3.0, 4.0])), 2.5, math.sqrt(5 / 3), 4)
    assert close(value(pd.Series([math.nan, 7.0])), 7.0, None, 1)
    assert value(pd.Series([math.nan])) is None


def test_final_metrics_by_hand(study_dir):
    add_runs(study_dir, ('slow', 0))  # Once more: a run is one row.
    report = read_study(study_dir)
    assert report.problems == []
    final = {name: of.final for name, of in numbers_of(report).items()}
    # Two numbers a, b have the sample deviation |a - b| / sqrt(2).
    assert close(final['slow']['AP'], 0.42, 0.04 / math.sqrt(2), 2)
    assert close(final['fast']['AP'], 0.28, 0.04 / math.sqrt(2), 2)
    assert close(final['fast']['AP75'], 0.224, 0.032 / math.sqrt(2), 2)
    assert final['slow']['AP_S'] is None  # There are no small objects.
    first = numbers_of(report)['slow'].curve.iloc[0]
    assert (first.iteration, first.lowest, first.highest) == (100, 0.1, 0.2)
    # Runs of an older definition are not mixed in.
    assert report.runs_of('fast').name.tolist() == ['fast/seed0-1', 'fast/seed1-1']


def finals(*aps):
    return pd.DataFrame(dict(seed=range(len(aps)), AP=aps))


def test_paired_t_interval_by_hand():
    """Of three seeds: 29, 1 and 17 thousandths, two degrees of freedom (4.303)."""
    deviation = math.sqrt(((29 - 47 / 3) ** 2 + (1 - 47 / 3) ** 2 + (17 - 47 / 3) ** 2) / 2) / 1000
    found = difference(finals(0.531, 0.497, 0.538), finals(0.502, 0.496, 0.521))
    half = 4.302652729749462 * deviation / math.sqrt(3)
    assert found.seeds == pytest.approx({0: 0.029, 1: 0.001, 2: 0.017})
    assert (found.mean, found.low, found.high) == pytest.approx(
        (0.047 / 3, 0.047 / 3 - half, 0.047 / 3 + half)
    )
    assert found.p == pytest.approx(0.193126, abs=1e-6)
    # One seed has no interval, neither have differences that are all the same, as of an A/A study.
    for other in (finals(0.1), finals(0.531, 0.497, 0.538), finals(0.431, 0.397, 0.438)):
        found = difference(finals(0.531, 0.497, 0.538), other)
        assert (found.low, found.p) == (None, None)
    # Seeds that only one of them has count in no pair; without any, the means are compared.
    assert list(difference(finals(0.5, 0.6, 0.8), finals(0.4, 0.3)).seeds) == [0, 1]
    alone = pd.DataFrame(dict(seed=[math.nan], AP=[0.5]))
    assert difference(alone, finals(0.4, 0.2)) == Difference({}, pytest.approx(0.2))
    assert difference(alone, finals()) is None


def test_holms_correction_by_hand():
    """Times 4, 3, 2 and 1 from the smallest on, and never smaller than the one before."""
    ps = dict(a=0.01, b=0.04, c=0.03, d=0.005, single=None)
    found = holm({name: Difference({}, 0.1, p=p) for name, p in ps.items()})
    assert {name: d.p_holm for name, d in found.items()} == pytest.approx(
        dict(a=0.03, b=0.06, c=0.06, d=0.02, single=None)
    )
    assert [name for name, d in found.items() if d.significant] == ['a', 'd']


def test_stars_and_intervals_of_a_table(study_dir):
    """Two seeds have an interval of one degree of freedom; the baseline has no difference."""
    found = tables_of(read_study(study_dir))['results']
    assert [row[3] for row in found.rows] == ['–', '−14.0 [−64.8, +36.8]']
    assert 'a paired t test at 5 %.' in found.note  # A single test needs no correction.
    for seed in (0, 1):
        for name in APS:
            write_run(study_dir / f'{name}/seed{seed + 2}-1', name, seed + 2, APS[name][seed])
            add_runs(study_dir, (name, seed + 2))
    assert tables_of(read_study(study_dir))['results'].rows[1][3] == '−14.0 [−21.3, −6.7]*'


@pytest.mark.parametrize(
    ('name', 'threshold', 'step', 'seeds'),
    [
        ('slow', 0.15, 100, [200, 100]),  # Means 0.15, 0.20, 0.31, 0.42.
        ('slow', 0.31, 300, [400, 300]),
        ('slow', 0.42, 400, [None, 400]),
        ('fast', 0.22, 300, [400, 300]),  # Means 0.07, 0.13, 0.22, 0.28.
        ('fast', 0.29, None, [400, None]),
    ],
)
def test_steps_to_an_ap_by_hand(study_dir, name, threshold, step, seeds):
    found = numbers_of(read_study(study_dir), [threshold])[name].reached[0]
    assert (found.step, found.seeds) == (step, seeds)
    if step:
        assert math.isclose(found.seconds, step * SECONDS[name])


# What a log can lack: of the second run of 'slow', whose APs are 0.2, 0.2, 0.32 and 0.44.
LOST = {
    'last line': (lambda lines: lines[:-1], [100, 200, 300], ['no evaluation after the last']),
    'half of the last line': (
        lambda lines: [*lines[:-1], lines[-1][:-40]],
        [100, 200, 300],
        ['1 of 12 lines cannot be read', 'no evaluation after the last iteration. Its AP of 0.440'],
    ),
    'an evaluation': (
        lambda lines: lines[:5] + lines[6:],
        [100, 300, 400],
        ['no evaluation can be read at iteration 200'],
    ),
    'a training line': (lambda lines: lines[1:], [100, 200, 300, 400], []),
    'everything': (lambda lines: [], [], ['no evaluation after the last iteration']),
    'nothing, but a line is there twice': (
        lambda lines: [*lines, lines[-1]],
        [100, 200, 300],
        [
            'evaluations after iteration 400 are left out: the config has 1 there',
            'no evaluation after',
        ],
    ),
    'nothing, but the AP is another': (
        lambda lines: [*lines[:-1], lines[-1].replace('0.44', '0.33')],
        [100, 200, 300, 400],
        ['result.json has an AP of 0.440 after the last iteration, its log 0.330'],
    ),
}


@pytest.mark.parametrize('lost', LOST)
def test_final_numbers_are_those_of_the_result(study_dir, lost):
    """And of nothing else: what the log lacks is named, and no number comes from an earlier AP."""
    change, steps, problems = LOST[lost]
    path = study_dir / 'slow/seed1-1' / SCALARS
    path.write_text('\n'.join(change(path.read_text().splitlines())))
    report = read_study(study_dir)
    found = numbers_of(report)
    assert close(found['slow'].final['AP'], 0.42, 0.04 / math.sqrt(2), 2)
    assert found['fast'].difference.seeds == pytest.approx({0: -0.1, 1: -0.18})
    evaluations = report.evaluations[report.evaluations.run == 'slow/seed1-1']
    assert evaluations.step.tolist() == steps
    assert len(report.problems) == len(problems)
    for problem, text in zip(report.problems, problems, strict=True):
        assert problem.startswith('slow/seed1-1') and text in problem
    # The time of a run whose end was not logged is not that of a shorter one.
    assert found['slow'].total_seconds.mean == pytest.approx(80)


@pytest.mark.parametrize(
    ('content', 'problem'),
    [
        ('{"finished": "now"}', 'has no AP after the last iteration: the run does not count'),
        ('{"metrics": {}}', 'has no AP after the last iteration'),
        ('{"metrics": {"AP": NaN}}', 'has no AP after the last iteration'),
        ('{"metrics": {"AP": null}}', 'has no AP after the last iteration'),
        ('{"metrics": {"AP": -1}}', 'has no AP after the last iteration'),
        ('', 'cannot be read (not a JSON object)'),
    ],
)
def test_results_without_an_ap(study_dir, content, problem):
    """Such a run counts neither in a mean nor in the number of seeds, and is named."""
    (study_dir / 'slow/seed1-1/result.json').write_text(content)
    report = read_study(study_dir)
    found = numbers_of(report)
    assert close(found['slow'].final['AP'], 0.4, None, 1) and found['slow'].seeds == 1
    assert list(found['fast'].difference.seeds) == [0]
    assert problem in ' '.join(report.problems)
    assert [row[2] for row in tables_of(report)['missing'].rows] == ['slow/seed1-1']


def test_seeds_that_are_there_twice_or_not_at_all(tmp_path):
    """Outside a study: of two runs of one seed none counts, as nobody knows which one should."""
    for name, seed in (('a/s0', 0), ('a/s1', 1), ('a/again', 1), ('b/s1', 1), ('b/s2', 2)):
        write_run(tmp_path / name, name[0], seed, [0.1, 0.2, 0.3, 0.1 * seed + 0.2], False)
    report = read_study(tmp_path)
    (problem,) = report.problems
    assert problem.startswith('a: seed 1 has 2 finished runs (a/again, a/s1): none of them counts')
    found = numbers_of(report)
    assert [found[name].seeds for name in report.experiments] == [1, 2]
    # No pair is left: the means are compared, as with runs without a seed.
    assert found[report.experiments[1]].difference == Difference({}, pytest.approx(0.15))
    for dump in tmp_path.glob('a/a*/*/vis_data/config.py'):
        dump.write_text(dump.read_text().replace('seed=1', 'diff=1'))
    problem = 'a/again: its config has no seed: it counts in means, in no pair'
    assert read_study(tmp_path).problems == [problem]


def test_a_run_that_ended_early(tmp_path):
    """At 300 of 400 iterations, where the best checkpoint may be: it is not finished."""
    write_run(tmp_path / 'a', 'a', 0, [0.1, 0.2, 0.3], False)
    report = read_study(tmp_path)
    assert numbers(report)[0].seeds == 0
    assert report.runs.state.tolist() == ['at iteration 300 of 400, AP 30.0 so far']


def log_of(folder, lines, max_iters, val_interval):
    write_log(folder, lines)
    return read_log(folder, dict(max_iters=max_iters, val_interval=val_interval))


EVALUATIONS = {
    'between lines': (
        [*map(train_line, (50, 100)), eval_line(0.1), *map(train_line, (150, 200, 250))]
        + [eval_line(0.2), train_line(300), eval_line(0.3)],
        (310, 125),
        [125, 250, 310],
    ),
    'several before the first line': (
        [eval_line(0.1), eval_line(0.2), train_line(50), eval_line(0.3)],
        (60, 20),
        [20, 40, 60],
    ),
    # It resumed at 20.
    'one of two before the first line': ([eval_line(0.2), train_line(50)], (60, 20), [40]),
    'one of two between lines': (
        [train_line(50), eval_line(0.1), train_line(100), eval_line(0.2)],
        (120, 20),
        [100],
    ),
    'with their iteration': (
        [train_line(50), eval_line(0.1, 80), train_line(100), eval_line(0.2, 120)],
        (120, 20),
        [80, 120],
    ),
    'of the last iterations alone': ([eval_line(0.2, 120)], (120, 20), [120]),
    'without a line or an iteration': ([eval_line(0.2)], (120, 20), []),
}


@pytest.mark.parametrize('case', EVALUATIONS)
def test_iterations_of_evaluations(tmp_path, case):
    """What could be one evaluation or another is left out and named."""
    lines, settings, steps = EVALUATIONS[case]
    log = log_of(tmp_path, lines, *settings)
    assert log.evaluations.iteration.tolist() == steps
    left_out = len([line for line in lines if 'iter' not in line]) - len(steps)
    assert any('left out' in problem for problem in log.problems) == (left_out > 0)


def test_epochs(tmp_path):
    """Epochs of 70 iterations, logged every 50: the last 20 of an epoch are not logged."""
    lines = []
    for epoch in (1, 2, 3):
        lines += [train_line(70 * epoch - 20, 0.1 * epoch, epoch=epoch), eval_line(0.1, epoch)]
    write_log(tmp_path, lines)
    log = read_log(tmp_path, dict(max_epochs=3, val_interval=1))
    assert log.evaluations[['step', 'iteration']].values.tolist() == [[1, 70], [2, 140], [3, 210]]
    # 50 at 0.1 s, 70 at 0.2 s, 70 at 0.3 s, and the last 20 as those before.
    assert math.isclose(log.evaluations.seconds.iloc[-1], 5 + 14 + 21 + 6)


def test_of_a_resumed_run_the_later_lines_count(tmp_path):
    first = [train_line(50), train_line(100), eval_line(0.1), train_line(150), train_line(200)]
    write_log(tmp_path, [*first, eval_line(0.5), train_line(250)], '20260101_000000')
    again = [train_line(150, 0.3), train_line(200, 0.3), eval_line(0.2)]
    write_log(tmp_path, again, '20260101_000001')
    log = read_log(tmp_path, dict(max_iters=400, val_interval=100))
    assert log.evaluations[['iteration', 'AP']].values.tolist() == [[100, 0.1], [200, 0.2]]
    assert (log.iterations, log.problems) == (200, [])
    assert math.isclose(log.evaluations.seconds.iloc[-1], 100 * 0.1 + 100 * 0.3)


def test_what_is_no_training_time(tmp_path):
    """MMEngine logs an evaluation as waiting for the batch after it, here 50 ms an iteration."""
    lines = [train_line(50), train_line(100), eval_line(0.1)]
    lines += [train_line(150, 0.15, data_time=0.06), train_line(200), eval_line(0.2)]
    assert math.isclose(log_of(tmp_path, lines, 200, 100).evaluations.seconds.iloc[-1], 200 * 0.1)
    # Of fifty iterations, in the middle of which the machine slept for minutes.
    lines = [train_line(50), train_line(100), train_line(150, 18.9), train_line(200, 0.3)]
    log = log_of(tmp_path, [*lines, eval_line(0.1)], 200, 200)
    # The median of 0.1, 0.1, 0.3 and 18.9 is 0.2.
    assert math.isclose(log.evaluations.seconds.iloc[-1], 50 * (0.1 + 0.1 + 0.2 + 0.3))


@pytest.mark.parametrize(
    'line', ['{"loss": 1.0, "ti', '\x00\x01', '[1]', '{"iter": "x"}', '{"coco/bbox_mAP": 0.4}']
)
def test_broken_lines_are_counted_and_left_out(tmp_path, line):
    path = write_log(tmp_path, [train_line(50), eval_line(0.1)])
    path.write_text(path.read_text() + line)
    log = read_log(tmp_path, dict(max_iters=50, val_interval=50))
    assert len(log.evaluations) == 1
    assert log.problems == [f'{path.relative_to(tmp_path)}: 1 of 3 lines cannot be read']


def test_partial_results(study_dir):
    """What is not finished is named and counts in no mean; the rest is there."""
    folder = study_dir / 'fast/seed1-1'
    (folder / 'result.json').unlink()
    (folder / 'failed.json').write_text('{"exit_code": 1, "log_tail": ["Trace", "KeyError: x"]}')
    add_runs(study_dir, ('fast', 2))
    report = read_study(study_dir)
    assert close(numbers_of(report)['fast'].final['AP'], 0.3, None, 1)
    assert [row[1:] for row in tables_of(report)['missing'].rows] == [
        [
            '1',
            'fast/seed1-1',
            'failed: exit code 1, KeyError: x, at iteration 400 of 400, AP 26.0 so far',
        ],
        ['2', 'fast/seed2-1', 'not started'],
    ]
    for path in study_dir.glob('*/*/result.json'):
        path.unlink()
    report = read_study(study_dir)
    assert list(tables_of(report)) == ['results', 'costs', 'missing']
    assert numbers(report)[0].ap is None


def test_broken_files_are_named(study_dir):
    (study_dir / 'slow/seed0-1/run.json').write_text('{')
    (study_dir / 'slow/seed1-1/result.json').write_text('')
    config = study_dir / 'fast/seed0-1/20260101_000000/vis_data/config.py'
    config.write_text('train_cfg = dict(')
    (study_dir / 'fast/seed1-1/20260101_000000/vis_data/config.py').unlink()
    report = read_study(study_dir)
    assert [problem.split(':')[0] for problem in report.problems] == [
        'slow/seed0-1/run.json',
        'slow/seed1-1/result.json',
        'fast/seed0-1/20260101_000000/vis_data/config.py',
        'fast/seed0-1',
        'fast/seed1-1',
        'fast/seed1-1',
    ]
    # Without its config, nobody knows at which step an evaluation was; the result still counts.
    assert set(report.evaluations.run) == {'slow/seed0-1', 'slow/seed1-1'}
    assert numbers_of(report)['fast'].seeds == 2


def test_any_work_directories(tmp_path):
    """Runs whose configs differ in the seed only are one experiment."""
    for seed in (0, 1):
        write_run(tmp_path / f'x/smca_seed{seed}', 'smca', seed, [0.1, 0.2, 0.3, 0.4], False)
    write_run(tmp_path / 'detr', 'detr', 0, [0.1, 0.2], False)
    # A test of a run dumps its config beside those of the training.
    test = tmp_path / 'detr/20260102_000000/vis_data/config.py'
    test.parent.mkdir(parents=True)
    test.write_text('randomness = dict(seed=5)\ntrain_cfg = dict(max_iters=7)')
    report = read_study(tmp_path)
    assert seeds_of(report) == {'detr': [0], 'x/smca': [0, 1]}
    assert report.baseline == 'detr'
    states = [row[-1] for row in tables_of(report)['missing'].rows]
    assert states == ['at iteration 200 of 400, AP 20.0 so far']
    assert close(numbers_of(report)['x/smca'].final['AP'], 0.4, 0.0, 2)
    assert read_study(tmp_path / 'detr').experiments == ['detr']


def test_what_a_run_starts_from_is_part_of_its_experiment(tmp_path):
    """Fine-tuned and from scratch are no seeds of one experiment; resumed runs are."""
    for seed in (0, 1):
        for name, line in (
            ('scratch', 'load_from = None\nresume = False\n'),
            ('tuned', "load_from = 'detr.pth'\nresume = False\n"),
        ):
            write_run(tmp_path / f'{name}_seed{seed}', 'smca', seed, [0.1, 0.2], False)
            (dump,) = (tmp_path / f'{name}_seed{seed}').glob('*/vis_data/config.py')
            dump.write_text(dump.read_text() + line)
    (dump,) = tmp_path.glob('tuned_seed1/*/vis_data/config.py')
    scalars = write_log(tmp_path / 'tuned_seed1', [train_line(250)], '20260101_000001')
    text = dump.read_text().replace("'detr.pth'", "'iter_200.pth'")
    resumed = text.replace('resume = False', 'resume = True')
    scalars.with_name('config.py').write_text(resumed)
    assert seeds_of(read_study(tmp_path)) == {'scratch': [0, 1], 'tuned': [0, 1]}


@pytest.mark.parametrize(
    ('content', 'message'),
    [(None, 'has no run'), ('{"name": "x"}', 'study.json cannot be read'), ('{', 'study.json')],
)
def test_folders_that_cannot_be_reported_on(tmp_path, content, message):
    if content:
        (tmp_path / 'study.json').write_text(content)
    with pytest.raises(StudyError, match=message):
        read_study(tmp_path)
    with pytest.raises(StudyError, match='study.json is no folder: specify the work directory'):
        read_study(tmp_path / 'study.json')


def test_epochs_to_the_tables(tmp_path):
    """Two runs that count epochs, the first evaluation of one later than the end of the other."""
    train_cfg = "dict(type='EpochBasedTrainLoop', max_epochs=2)"
    for name, seconds in (('quick', 1000.0), ('slow', 3000.0)):
        lines = []
        for epoch in (1, 2):
            lines += [train_line(4 * epoch - i, seconds, epoch=epoch) for i in (3, 2, 1, 0)]
            lines += [eval_line(0.1 * epoch, step=epoch)]
        write_config(write_log(tmp_path / name, lines), 0, name, train_cfg)
    report = read_study(tmp_path)
    assert report.unit == 'epochs'
    found = numbers_of(report)
    assert found['slow'].curve[['step', 'iteration']].values.tolist() == [[1, 4], [2, 8]]
    assert found['slow'].iteration_seconds == Value(3000.0, None, 1)
    rows = tables_of(report)['convergence'].rows
    # 8 iterations of 1000 s are 8000 s, those of the other 6.67 hours.
    assert [row[-2:] for row in rows] == [['1.00', '2.22'], ['1.00', '6.67']]
    drawn = dict(figures(report, numbers(report)))
    assert list(drawn) == ['ap_over_epochs', 'ap_over_time']
    assert drawn['ap_over_time'].axes[0].get_xlabel() == 'training time, hours'
    assert drawn['ap_over_time'].get_suptitle().startswith('one seed; dashed: quick')


def test_different_lengths_are_shown(tmp_path):
    for name, iterations in (('short', (100, 200)), ('long', (100, 200, 300))):
        lines = []
        for iteration in iterations:
            lines += [train_line(iteration), eval_line(iteration / 1000)]
        train_cfg = f'dict(max_iters={iterations[-1]}, val_interval=100)'
        write_config(write_log(tmp_path / name, lines), 0, name, train_cfg)
    results = tables_of(read_study(tmp_path))['results']
    assert results.head[:4] == ['experiment', 'seeds', 'iterations', 'AP']
    assert [row[:4] for row in results.rows] == [
        ['long', '1', '300', '30.0'],
        ['short', '1', '200', '20.0'],
    ]
    assert '**Not all trained for the same number of iterations**' in results.note


def test_what_was_not_logged_or_could_not_be_measured(tmp_path):
    """No times, no AP: the rest is reported."""
    for name, ap in (('a', 0.3), ('b', -1)):
        lines = []
        for i in (100, 200, 300, 400):
            lines += [dict(loss=1.0, iter=i, step=i), eval_line(ap)]
        write_config(write_log(tmp_path / name, lines), 0, name)
    report = read_study(tmp_path)
    found = numbers_of(report)
    assert found['a'].curve.seconds.isna().all() and found['b'].curve.empty
    shown = tables_of(report)
    assert set(shown) == {'results', 'convergence', 'missing'}
    assert shown['convergence'].rows == [['a', '100', '100', '100', '100', '0.25', '–']]
    assert [row[2:] for row in shown['missing'].rows] == [['b', 'finished, but without an AP']]
    assert [name for name, _ in figures(report, numbers(report))] == ['ap_over_iterations']
    # Without a final AP of the baseline only the given thresholds are left.
    of_none = tables_of(read_study(tmp_path, 'b'), [0.2])['convergence']
    assert (of_none.head, of_none.rows) == (['experiment', 'AP 20.0'], [['a', '100']])
    write_config(write_log(tmp_path / 'c/d', [train_line(50)]), 0)
    report = read_study(tmp_path / 'c')
    assert write_figures(report, numbers(report), tmp_path) == []


def test_times_of_different_machines_are_left_out(study_dir):
    # Without a GPU's, the memory is what the sweep recorded.
    for scalars in study_dir.glob('fast/*-1/*/vis_data/scalars.json'):
        scalars.write_text(scalars.read_text().replace('"memory"', '"no_memory"'))
    result = study_dir / 'fast/seed1-1/result.json'
    result.write_text(result.read_text().replace('{', '{"peak_memory_mib": 700, ', 1))
    costs = tables_of(read_study(study_dir))['costs']
    assert costs.head[1:] == ['ms per iteration', 'training, seconds', 'peak memory, MiB']
    assert costs.rows == [['slow', '200 ± 0', '80.0', '2048'], ['fast', '100 ± 0', '40.0', '700']]
    run = study_dir / 'fast/seed0-1/run.json'
    run.write_text(run.read_text().replace('"cpu": "x"', '"cpu": "y"'))
    report = read_study(study_dir)
    (problem,) = report.problems
    assert 'different machines (x; y): their training times' in problem
    assert tables_of(report)['costs'].head == ['experiment', 'peak memory, MiB']
    assert [name for name, _ in figures(report, numbers(report))] == ['ap_over_iterations']


def run_tool(monkeypatch, *arguments):
    """Run ``tools/report.py`` here, as importing all of it again takes seconds; its exit status."""
    monkeypatch.setattr(sys, 'argv', ['tools/report.py', *map(str, arguments)])
    return runpy.run_path(str(ROOT / 'tools/report.py'))['main']()


def test_report_in_every_format(study_dir, tmp_path_factory, monkeypatch):
    out = tmp_path_factory.mktemp('out')
    assert run_tool(monkeypatch, study_dir, '--out', out, '--ap', '0.2') == 0
    expected = {f'ap_over_{x}.{suffix}' for x in ('iterations', 'time') for suffix in FORMATS}
    expected |= {f'report.{suffix}' for suffix in ('csv', 'json', 'md', 'tex')}
    assert {path.name for path in out.iterdir()} == expected

    text = (out / 'report.md').read_text()
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    final = '42.0 ± 2.8', '–', '63.0 ± 4.2', '33.6 ± 2.3', '–', '42.0 ± 2.8', '50.4 ± 3.4'
    assert ['slow', '2', *final] in cells
    assert ['fast', '300', 'never', '–', '–'] in cells
    content = json.loads((out / 'report.json').read_text())
    assert content['command'].startswith('python tools/report.py')
    (attempt,) = content['attempts']['slow/seed0-1']
    assert attempt['versions'] == {'torch': '2.13'}
    # A row per run, and per evaluation.
    rows = pd.read_csv(out / 'report.csv')
    assert rows.AP.tolist() == [0.4, 0.44, 0.3, 0.26] and rows.AP_S.isna().all()
    assert [run['AP'] for run in content['runs']] == [0.4, 0.44, 0.3, 0.26]
    assert len(content['evaluations']) == 16 and content['evaluations'][0]['AP_S'] is None
    of_slow, of_fast = content['numbers']
    assert of_slow['final']['AP']['std'] == pytest.approx(0.02828, abs=1e-5)
    assert of_fast['difference']['seeds'] == pytest.approx({'0': -0.1, '1': -0.18})
    assert of_fast['difference']['significant'] is False
    tex = (out / 'report.tex').read_text()
    assert r'42.0 $\pm$ 2.8' in tex and tex.isascii()
    assert tex.count(r'\begin{tabular}') == tex.count(r'\end{tabular}') == tex.count(r'\toprule')


@pytest.mark.parametrize(
    ('arguments', 'message'),
    [
        (['--ap', '40'], '--ap 40 is not between 0 and 1'),
        (['--baseline', 'x'], "baseline 'x' is not one of the experiments: slow, fast"),
    ],
)
def test_wrong_arguments_are_refused(study_dir, monkeypatch, capsys, arguments, message):
    assert run_tool(monkeypatch, study_dir, *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (study_dir / 'report').exists()


def test_missing_packages_are_named(study_dir, monkeypatch, capsys):
    monkeypatch.setattr('importlib.util.find_spec', lambda name: None)
    for name in [name for name in sys.modules if name.startswith('mmsmca.studies')]:
        monkeypatch.delitem(sys.modules, name)
    assert run_tool(monkeypatch, study_dir) == 2
    assert "pandas is not installed: pip install 'mmsmca[studies]'" in capsys.readouterr().err


def test_colours_belong_to_experiments(study_dir):
    """Also where one of them is not drawn."""
    report = read_study(study_dir)
    report.evaluations = report.evaluations[report.evaluations.run.str.startswith('fast')]
    figure = dict(figures(report, numbers(report)))['ap_over_iterations']
    assert [line.get_color() for line in figure.axes[0].lines] == ['0.82', COLOURS[1]]


def test_latex_escapes_names(study_dir):
    text = (study_dir / 'study.json').read_text().replace('"fast"', '"a_b"')
    (study_dir / 'study.json').write_text(text)
    report = read_study(study_dir)
    report.chosen = 'a_b & 5%'
    tex = latex(tables(report, numbers(report)))
    assert r'a\_b \& 5\%' in tex
    assert 'a_b' not in tex
