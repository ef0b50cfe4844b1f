"""Reports: numbers computed by hand, logs as runs leave them, files as reports leave them."""

import copy
import csv
import json
import math
import runpy
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from mmengine.config import Config
from utils import ROOT

from mmsmca.studies.record import Attempt, StudyError
from mmsmca.studies.report import costs as model_costs
from mmsmca.studies.report import figures
from mmsmca.studies.report.figures import Figures
from mmsmca.studies.report.logs import METRICS, read_log
from mmsmca.studies.report.published import find_published
from mmsmca.studies.report.results import Report, read_reports
from mmsmca.studies.report.statistics import (
    Difference,
    Numbers,
    Value,
    difference,
    holm,
    numbers,
    value,
)
from mmsmca.studies.report.tables import Table, tables
from mmsmca.studies.report.writers import csv_text, json_text, latex, markdown

# Of the slower method every iteration takes 0.2 s, of the other 0.1 s; evaluated every 100.
APS = {
    'slow': {0: [0.10, 0.20, 0.30, 0.40], 1: [0.20, 0.20, 0.32, 0.44]},
    'fast': {0: [0.05, 0.10, 0.20, 0.30], 1: [0.09, 0.16, 0.24, 0.26]},
}
SECONDS = {'slow': 0.2, 'fast': 0.1}


def train_line(iteration: int, seconds: float = 0.1, **more) -> dict:
    line = dict(loss=1.0, time=seconds, data_time=0.01, iter=iteration, step=iteration)
    return line | more


def eval_line(ap: float, step: int = 0, **more) -> dict:
    """As MMEngine logs it: step 0 where the run counts iterations."""
    sizes = dict(zip(METRICS.values(), (ap, 1.5 * ap, 0.8 * ap, -1, ap, 1.2 * ap), strict=True))
    return {**sizes, 'data_time': 0.02, 'time': 0.05, 'step': step} | more


def write_log(folder: Path, lines: list[dict], timestamp: str = '20260101_000000') -> Path:
    path = folder / timestamp / 'vis_data/scalars.json'
    path.parent.mkdir(parents=True)
    path.write_text(''.join(json.dumps(line) + '\n' for line in lines))
    return path


def write_config(scalars: Path, seed: int, name: str = 'm', train_cfg: str = '') -> None:
    train_cfg = train_cfg or "dict(type='IterBasedTrainLoop', max_iters=400, val_interval=100)"
    scalars.with_name('config.py').write_text(
        f'train_cfg = {train_cfg}\n'
        'default_hooks = dict(logger=dict(interval=50))\n'
        f'randomness = dict(seed={seed})\nmethod = {name!r}\n'
        f"work_dir = '{scalars.parents[2]}'\n"
    )


def write_run(folder: Path, name: str, seed: int, aps: list[float], finished: bool = True) -> None:
    lines = []
    for k, ap in enumerate(aps, 1):
        lines += [train_line(100 * k - 50, SECONDS.get(name, 0.1), memory=2048)]
        lines += [train_line(100 * k, SECONDS.get(name, 0.1), memory=2048), eval_line(ap)]
    write_config(write_log(folder, lines), seed, name)
    (folder / 'run.json').write_text(
        json.dumps(
            dict(attempts=[dict(git='abc', versions=dict(torch='2.13'), hardware=dict(cpu='x'))])
        )
    )
    if finished:
        (folder / 'result.json').write_text('{"finished": "now"}')


def read_study(folder: Path, baseline: str | None = None) -> Report:
    (report,) = read_reports(folder, baseline).values()
    return report


def numbers_of(report: Report, levels: list[float] | None = None) -> dict[str, Numbers]:
    return {of.name: of for of in numbers(report, levels)}


def tables_of(report: Report, levels: list[float] | None = None) -> dict[str, Table]:
    return {table.name: table for table in tables(report, numbers(report, levels))}


def figures_of(report: Report) -> dict[str, figures.Figure]:
    return dict(Figures(report, numbers(report)).all())


@pytest.fixture
def study_dir(tmp_path) -> Path:
    """Two experiments of two seeds, as a sweep leaves them, and a run of an older definition."""
    runs = []
    for name, seeds in APS.items():
        for seed, aps in seeds.items():
            folder = f'{name}/seed{seed}-1'
            write_run(tmp_path / folder, name, seed, aps)
            runs.append(dict(experiment=name, seed=seed, id='1', budgets=[]))
    write_run(tmp_path / 'fast/seed0-0', 'fast', 0, [0.9] * 4)
    published = {'slow': 'mmdet::detr/detr_r50_8xb2-150e_coco.py', 'fast': 'smca_r50_8xb2-50e_coco'}
    experiments = [
        dict(name=name, configs=['x.py'], cfg_options={}, published=published[name]) for name in APS
    ]
    definition = dict(name='pair', baseline='slow', experiments=experiments, runs=runs)
    definition |= dict(seeds=[0, 1], budgets=[], chosen='')
    (tmp_path / 'study.json').write_text(json.dumps(definition))
    return tmp_path


def close(a: Value, mean: float, std: float | None, n: int) -> bool:
    same_std = a.std is None if std is None else math.isclose(a.std, std, rel_tol=1e-12)
    return math.isclose(a.mean, mean, rel_tol=1e-12) and same_std and a.n == n


def test_mean_and_deviation_by_hand():
    # Mean 2.5; squared distances 2.25 + 0.25 + 0.25 + 2.25 = 5 over n - 1 = 3.
    assert close(value([1.0, 2.0, 3.0, 4.0]), 2.5, math.sqrt(5 / 3), 4)
    assert close(value([7.0]), 7.0, None, 1)
    assert close(value([None, 7.0]), 7.0, None, 1)
    assert value([None]) is None


def test_final_metrics_by_hand(study_dir):
    final = {name: of.final for name, of in numbers_of(read_study(study_dir)).items()}
    # Two numbers a, b have the sample deviation |a - b| / sqrt(2).
    assert close(final['slow']['AP'], 0.42, 0.04 / math.sqrt(2), 2)
    assert close(final['fast']['AP'], 0.28, 0.04 / math.sqrt(2), 2)
    assert close(final['fast']['AP75'], 0.224, 0.032 / math.sqrt(2), 2)
    assert final['slow']['AP_S'] is None  # -1: there are no small objects.


def finals(*aps: float) -> list[SimpleNamespace]:
    return [SimpleNamespace(seed=seed, final=dict(AP=ap)) for seed, ap in enumerate(aps)]


def test_paired_t_interval_by_hand():
    """Of README's three seeds: 29, 1 and 17 thousandths, two degrees of freedom (4.303)."""
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
    alone = [SimpleNamespace(seed=None, final=dict(AP=0.5))]
    assert difference(alone, finals(0.4, 0.2)) == Difference({}, pytest.approx(0.2))
    assert difference(alone, []) is None


def test_holms_correction_by_hand():
    """Times 4, 3, 2 and 1 from the smallest on, and never smaller than the one before."""
    ps = dict(a=0.01, b=0.04, c=0.03, d=0.005, single=None)
    found = holm({name: Difference({}, 0.1, p=p) for name, p in ps.items()})
    assert {name: d.p_holm for name, d in found.items()} == pytest.approx(
        dict(a=0.03, b=0.06, c=0.06, d=0.02, single=None)
    )
    assert [name for name, d in found.items() if d.supported] == ['a', 'd']


def test_stars_and_intervals_of_a_table(study_dir):
    """Two seeds have an interval of one degree of freedom; the baseline has no difference."""
    found = tables_of(read_study(study_dir))['results']
    assert [row[3] for row in found.rows] == ['–', '−14.0 [−64.8, +36.8]']
    assert 'a paired t test at 5 %.' in found.note  # A single test needs no correction.
    for seed in (0, 1):
        for name in APS:
            folder = study_dir / f'{name}/seed{seed + 2}-1'
            write_run(folder, name, seed + 2, APS[name][seed])
    path = study_dir / 'study.json'
    definition = json.loads(path.read_text())
    more = [dict(run, seed=run['seed'] + 2) for run in definition['runs']]
    path.write_text(json.dumps(dict(definition, runs=definition['runs'] + more)))
    assert tables_of(read_study(study_dir))['results'].rows[1][3] == '−14.0 [−21.3, −6.7]*'


def test_what_a_run_starts_from_is_part_of_its_experiment(tmp_path):
    """Fine-tuned and from scratch are no seeds of one experiment; resumed runs are."""
    for seed in (0, 1):
        for name, lines in (
            ('scratch', ('load_from = None\nresume = False\n',)),
            ('tuned', ("load_from = 'detr.pth'\nresume = False\n",)),
        ):
            folder = tmp_path / f'{name}_seed{seed}'
            write_run(folder, 'smca', seed, [0.1, 0.2, 0.3, 0.4], False)
            (dump,) = folder.glob('*/vis_data/config.py')
            dump.write_text(dump.read_text() + lines[0])
    resumed = tmp_path / 'tuned_seed1/20260101_000001/vis_data/config.py'
    resumed.parent.mkdir(parents=True)
    (dump,) = tmp_path.glob('tuned_seed1/20260101_000000/vis_data/config.py')
    text = dump.read_text().replace("'detr.pth'", "'iter_200.pth'")
    resumed.write_text(text.replace('resume = False', 'resume = True'))
    study = read_study(tmp_path)
    assert {name: [run.seed for run in study.runs_of(name)] for name in study.experiments} == {
        'scratch': [0, 1],
        'tuned': [0, 1],
    }


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


def test_memory_without_a_gpu_is_what_the_sweep_recorded(study_dir):
    for scalars in study_dir.glob('fast/*-1/*/vis_data/scalars.json'):
        scalars.write_text(scalars.read_text().replace('"memory"', '"no_memory"'))
    (study_dir / 'fast/seed1-1/result.json').write_text('{"peak_memory_mib": 700}')
    study = read_study(study_dir)
    assert [run.peak_memory_mib for run in study.runs_of('fast')] == [None, 700]
    assert [of.peak_memory_mib for of in numbers(study)] == [2048, 700]


def test_curve_has_the_range_over_the_seeds(study_dir):
    first = numbers_of(read_study(study_dir))['slow'].curve[0]
    assert (first.iteration, first.lowest, first.highest) == (100, 0.1, 0.2)


def test_evaluations_between_logged_lines_are_at_their_interval(tmp_path):
    lines = [train_line(50), train_line(100), eval_line(0.1), train_line(150), train_line(200)]
    lines += [train_line(250), eval_line(0.2), train_line(300), eval_line(0.3)]
    write_log(tmp_path, lines)
    log = read_log(tmp_path, dict(max_iters=310, val_interval=125), 50)
    assert [e.iteration for e in log.evaluations] == [125, 250, 310]


def test_several_evaluations_before_the_first_line(tmp_path):
    write_log(tmp_path, [eval_line(0.1), eval_line(0.2), train_line(50), eval_line(0.3)])
    log = read_log(tmp_path, dict(max_iters=60, val_interval=20), 50)
    assert [e.iteration for e in log.evaluations] == [20, 40, 60]


def test_epochs(tmp_path):
    """Epochs of 70 iterations, logged every 50: the last 20 of an epoch are not logged."""
    lines = []
    for epoch in (1, 2, 3):
        lines += [train_line(70 * epoch - 20, 0.1 * epoch, epoch=epoch), eval_line(0.1, epoch)]
    write_log(tmp_path, lines)
    log = read_log(tmp_path, dict(max_epochs=3, val_interval=1), 50)
    assert [(e.epoch, e.iteration) for e in log.evaluations] == [(1, 70), (2, 140), (3, 210)]
    # 50 at 0.1 s, 70 at 0.2 s, 70 at 0.3 s, and the last 20 as those before.
    assert math.isclose(log.evaluations[-1].seconds, 5 + 14 + 21 + 6)


def test_of_a_resumed_run_the_later_lines_count(tmp_path):
    first = [train_line(50), train_line(100), eval_line(0.1), train_line(150), train_line(200)]
    write_log(tmp_path, [*first, eval_line(0.5), train_line(250)], '20260101_000000')
    again = [train_line(150, 0.3), train_line(200, 0.3), eval_line(0.2)]
    write_log(tmp_path, again, '20260101_000001')
    log = read_log(tmp_path, dict(max_iters=400, val_interval=100), 50)
    assert [(e.iteration, e.metrics['AP']) for e in log.evaluations] == [(100, 0.1), (200, 0.2)]
    assert log.iterations == 200
    assert math.isclose(log.evaluations[-1].seconds, 100 * 0.1 + 100 * 0.3)


def test_what_an_evaluation_takes_is_no_training_time(tmp_path):
    """MMEngine logs it as waiting for the batch after it, here 50 ms a line's iteration."""
    lines = [train_line(50), train_line(100), eval_line(0.1)]
    lines += [train_line(150, 0.15, data_time=0.06), train_line(200), eval_line(0.2)]
    write_log(tmp_path, lines)
    log = read_log(tmp_path, dict(max_iters=200, val_interval=100), 50)
    assert math.isclose(log.evaluations[-1].seconds, 200 * 0.1)


def test_what_a_stopped_process_waits_is_no_training_time(tmp_path):
    """Of fifty iterations, in the middle of which the machine slept for minutes."""
    lines = [train_line(50), train_line(100), train_line(150, 18.9), train_line(200, 0.3)]
    write_log(tmp_path, [*lines, eval_line(0.1)])
    log = read_log(tmp_path, dict(max_iters=200, val_interval=200), 50)
    # The median of 0.1, 0.1, 0.3 and 18.9 is 0.2.
    assert math.isclose(log.evaluations[-1].seconds, 50 * (0.1 + 0.1 + 0.2 + 0.3))


@pytest.mark.parametrize(
    'line', ['{"loss": 1.0, "ti', '\x00\x01', '[1]', '{"iter": "x"}', '{"coco/bbox_mAP": 0.4}']
)
def test_broken_lines_are_counted_and_left_out(tmp_path, line):
    path = write_log(tmp_path, [train_line(50), eval_line(0.1)])
    path.write_text(path.read_text() + line)
    log = read_log(tmp_path, dict(max_iters=50, val_interval=50), 50)
    assert len(log.evaluations) == 1
    assert log.problems == [f'{path.relative_to(tmp_path)}: 1 of 3 lines cannot be read']


def test_runs_of_an_older_definition_are_not_mixed_in(study_dir):
    names = [run.name for run in read_study(study_dir).runs_of('fast')]
    assert names == ['fast/seed0-1', 'fast/seed1-1']


def test_partial_results(study_dir):
    """What is not finished is named and counts in no mean; the rest is there."""
    folder = study_dir / 'fast/seed1-1'
    (folder / 'result.json').unlink()
    (folder / 'failed.json').write_text('{"exit_code": 1, "log_tail": ["Trace", "KeyError: x"]}')
    definition = json.loads((study_dir / 'study.json').read_text())
    definition['runs'].append(dict(experiment='fast', seed=2, id='1', budgets=[]))
    (study_dir / 'study.json').write_text(json.dumps(definition))
    study = read_study(study_dir)
    assert close(numbers_of(study)['fast'].final['AP'], 0.30, None, 1)
    assert {run.name: run.state for run in study.unfinished} == {
        'fast/seed1-1': 'failed: exit code 1, KeyError: x, at iteration 400 of 400, AP 26.0 so far',
        'fast/seed2-1': 'not started',
    }
    assert 'KeyError: x' in markdown(study, tables(study, numbers(study)))


def test_nothing_finished_yet(study_dir):
    for result in study_dir.glob('*/*/result.json'):
        result.unlink()
    study = read_study(study_dir)
    assert list(tables_of(study)) == ['results', 'costs', 'published', 'missing']
    assert numbers(study)[0].ap is None
    assert csv_text(study, numbers(study)).count('\n') == 3


def test_broken_files_are_named(study_dir):
    (study_dir / 'slow/seed0-1/run.json').write_text('{')
    (study_dir / 'slow/seed1-1/result.json').write_text('')
    config = study_dir / 'fast/seed0-1/20260101_000000/vis_data/config.py'
    config.write_text('train_cfg = dict(')
    (study_dir / 'fast/seed1-1/20260101_000000/vis_data/scalars.json').write_text('{"lo')
    study = read_study(study_dir)
    assert [problem.split(':')[0] for problem in study.problems] == [
        'slow/seed0-1/run.json',
        'slow/seed1-1/result.json',
        'fast/seed0-1/20260101_000000/vis_data/config.py',
        'fast/seed1-1/20260101_000000/vis_data/scalars.json',
        'fast/seed1-1',
    ]
    assert {run.name for run in study.unfinished} == {'slow/seed1-1', 'fast/seed1-1'}


def test_any_work_directories(tmp_path):
    """Runs whose configs differ in the seed only are one experiment."""
    for seed in (0, 1):
        write_run(tmp_path / f'x/smca_seed{seed}', 'smca', seed, [0.1, 0.2, 0.3, 0.4], False)
    write_run(tmp_path / 'detr', 'detr', 0, [0.1, 0.2], False)
    study = read_study(tmp_path)
    assert {name: [run.seed for run in study.runs_of(name)] for name in study.experiments} == {
        'detr': [0],
        'x/smca': [0, 1],
    }
    assert study.baseline == 'detr'
    states = [run.state for run in study.unfinished]
    assert states == ['at iteration 200 of 400, AP 20.0 so far']
    assert close(numbers_of(study)['x/smca'].final['AP'], 0.4, 0.0, 2)
    assert read_study(tmp_path / 'detr').experiments == ['detr']


@pytest.mark.parametrize(
    ('content', 'message'),
    [(None, 'has no run'), ('{"name": "x"}', 'study.json cannot be read'), ('{', 'study.json')],
)
def test_folders_that_cannot_be_reported_on(tmp_path, content, message):
    if content:
        (tmp_path / 'study.json').write_text(content)
    with pytest.raises(StudyError, match=message):
        read_study(tmp_path)


@pytest.mark.parametrize(
    ('reference', 'ap', 'epochs'),
    [
        ('mmdet::detr/detr_r50_8xb2-150e_coco.py', 0.399, 150),
        ('mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py', 0.462, 50),
        ('smca/smca_r50_8xb2-50e_coco.py', 0.41, 50),
        ('smca/ablation/smca_r50_head-shared_8xb2-50e_coco.py', 0.402, 50),
        ('smca/detr_r50_focal-loss_8xb2-50e_coco.py', 0.348, 50),
    ],
)
def test_published_numbers(reference, ap, epochs):
    published = find_published(reference)
    assert math.isclose(published.metrics['AP'], ap)
    assert published.epochs == epochs


def test_published_numbers_by_size():
    metrics = find_published('smca/smca-multi-scale_r50_8xb1-108e_coco.py').metrics
    assert metrics == pytest.approx(dict(AP=0.456, AP_S=0.259, AP_L=0.626))


def test_studies_refer_to_what_is_published():
    studies = [Config.fromfile(path) for path in (ROOT / 'configs/studies').glob('*.py')]
    experiments = [experiment for study in studies for experiment in study.experiments]
    references = {experiment.get('published') for experiment in experiments} - {None}
    assert len(references) > 10
    for reference in references:
        find_published(reference)


def test_nothing_is_published_of_some_configs():
    assert find_published('smca/smca_r101_8xb2-50e_coco.py') is None


@pytest.mark.parametrize('reference', ['smca/no.py', 'mmdet::detr/no.py', 'mmdet::no/no.py'])
def test_published_numbers_of_no_config(reference):
    with pytest.raises(StudyError, match=reference):
        find_published(reference)


def test_costs_are_measured_once(tmp_path):
    path = write_log(tmp_path / 'a', [train_line(50), eval_line(0.1)])
    config = ROOT / 'configs/small/smca_r18w16_1xb8-11e_shapes128.py'
    path.with_name('config.py').write_text(
        f'_base_ = {str(config)!r}\nmodel = dict(num_queries=4, test_cfg=dict(max_per_img=4))\n'
    )
    study = read_study(tmp_path)
    model_costs.add_costs(study, tmp_path)
    assert study.costs == {}
    model_costs.add_costs(study, tmp_path, measured=True)
    measured, cfg = study.costs, study.runs[0].cfg
    (found,) = numbers(study)
    model = model_costs.MODELS.build(copy.deepcopy(cfg.model))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert found.flops > found.parameters
    assert found.latency_ms > 0
    assert measured['experiments']['a']['image'] == list(model_costs.image_size(cfg))
    # Timings never repeat.
    model_costs.add_costs(study, tmp_path, measured=True)
    assert study.costs == measured

    cfg.model.num_queries = 5
    model_costs.add_costs(study, tmp_path)
    assert study.costs == {}
    (tmp_path / model_costs.FILE).write_text('{')
    model_costs.add_costs(study, tmp_path)
    assert model_costs.FILE in study.problems[-1]


def test_epochs_to_the_tables(tmp_path):
    """Two runs that count epochs, the first evaluation of one later than the end of the other."""
    train_cfg = "dict(type='EpochBasedTrainLoop', max_epochs=2)"
    for name, seconds in (('quick', 1000.0), ('slow', 3000.0)):
        lines = []
        for epoch in (1, 2):
            lines += [train_line(4 * epoch - i, seconds, epoch=epoch) for i in (3, 2, 1, 0)]
            lines += [eval_line(0.1 * epoch, step=epoch)]
        write_config(write_log(tmp_path / name, lines), 0, name, train_cfg)
    study = read_study(tmp_path)
    assert study.unit == 'epochs'
    found = numbers_of(study)
    assert [(p.step, p.iteration) for p in found['slow'].curve] == [(1, 4), (2, 8)]
    assert found['slow'].iteration_seconds == Value(3000.0, None, 1)
    rows = tables_of(study)['convergence'].rows
    # 8 iterations of 1000 s are 8000 s, those of the other 6.67 hours.
    assert [row[-2:] for row in rows] == [['1.00', '2.22'], ['1.00', '6.67']]
    drawn = figures_of(study)
    assert list(drawn) == [
        'ap_over_epochs',
        'each_over_epochs',
        'ap_over_time',
        'each_over_time',
        'ap_over_cost',
    ]
    assert drawn['ap_over_time'].axes[0].get_xlabel() == 'training time, hours'
    assert drawn['ap_over_time'].axes[0].get_title(loc='left') == 'one seed'


def test_different_lengths_are_shown(tmp_path):
    for name, iterations in (('short', (100, 200)), ('long', (100, 300))):
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
    iterations = [dict(loss=1.0, iter=i, step=i) for i in (50, 100)]
    for name, ap in (('a', 0.3), ('b', -1)):
        lines = [*iterations, eval_line(ap), dict(loss=1.0, iter=400, step=400), eval_line(ap)]
        write_config(write_log(tmp_path / name, lines), 0, name)
    study = read_study(tmp_path)
    found = numbers_of(study)
    assert [point.seconds for point in found['a'].curve] == [None, None]
    assert found['b'].curve == []
    shown = tables_of(study)
    assert set(shown) == {'results', 'convergence'}
    assert shown['convergence'].rows == [
        ['a', '100', '100', '100', '100', '0.25', '–'],
        ['b', *['never'] * 4, '–', '–'],
    ]
    assert list(figures_of(study)) == ['ap_over_iterations']
    # Without a final AP of the baseline only the given thresholds are left.
    of_none = tables_of(read_study(tmp_path, 'b'), [0.2])['convergence']
    assert of_none.head == ['experiment', 'AP 20.0']
    assert of_none.rows == [['a', '100'], ['b', 'never']]


def test_no_figure_of_nothing(tmp_path):
    write_config(write_log(tmp_path / 'a', [train_line(50)]), 0)
    study = read_study(tmp_path)
    assert figures.write_figures(study, numbers(study), tmp_path) == []


def test_costs_are_shown(study_dir):
    study = read_study(study_dir)
    cost = dict(parameters=41e6, flops=90e9, latency_ms=12.5, image=[256, 320])
    environment = dict(hardware='a CPU', threads=3, date='today')
    study.costs = dict(environment=environment, rounds=9, experiments=dict(slow=cost))
    table = tables_of(study)['costs']
    assert [row[:5] for row in table.rows] == [
        ['slow', '41.0', '90.0', '12.5', '200 ± 0'],
        ['fast', '–', '–', '–', '100 ± 0'],
    ]
    assert '320 x 256 on a CPU, 3 threads, today' in table.note
    panels = Figures(study, numbers(study)).cost_panels()
    assert panels['GFLOPs'] == {'slow': 90.0}
    assert panels['training time, seconds'] == pytest.approx({'slow': 80.0, 'fast': 40.0})
    drawn = figures_of(study)['ap_over_cost']
    points = [len(axes.containers) for axes in drawn.axes]
    assert points == [2, 1, 1, 1, 2, 0]  # The last panel of the grid is empty.
    study.calibration = dict(experiments=dict(fast=dict(seconds=0.25)))
    assert Figures(study, numbers(study)).cost_panels()['ms per iteration'] == {'fast': 250}


def test_times_of_different_machines_are_left_out(study_dir):
    assert 'training, seconds' in tables_of(read_study(study_dir))['costs'].head
    run = study_dir / 'fast/seed0-1/run.json'
    run.write_text(run.read_text().replace('"cpu": "x"', '"cpu": "y"'))
    study = read_study(study_dir)
    (problem,) = study.problems
    assert 'different machines (x; y): their training times' in problem
    assert tables_of(study)['costs'].head == ['experiment', 'peak memory, MiB']
    assert not {name for name in figures_of(study) if name.endswith('_time')}
    assert list(Figures(study, numbers(study)).cost_panels()) == ['training memory, GiB']
    # The first panel has one experiment, the legend both; it is beside the panels.
    study.calibration = dict(experiments=dict(fast=dict(seconds=0.25)))
    drawn = figures_of(study)['ap_over_cost']
    assert [len(axes.containers) for axes in drawn.axes] == [1, 2]
    (legend,) = drawn.legends
    assert {text.get_text() for text in legend.get_texts()} == {'slow', 'fast'}


def run_tool(monkeypatch, *arguments: object) -> int:
    """Run ``tools/report.py`` here, as importing all of it again takes seconds; its exit status."""
    monkeypatch.setattr(sys, 'argv', ['tools/report.py', *map(str, arguments)])
    return runpy.run_path(str(ROOT / 'tools/report.py'))['main']()


def test_report_in_every_format(study_dir, tmp_path_factory, monkeypatch):
    out = tmp_path_factory.mktemp('out')
    run_tool(monkeypatch, study_dir, '--out', out, '--ap', '0.2')
    names = [f'ap_over_{x}' for x in ('cost', 'iterations', 'time')]
    names += ['each_over_iterations', 'each_over_time']
    expected = {f'{name}.{suffix}' for name in names for suffix in figures.FORMATS}
    expected |= {f'report.{suffix}' for suffix in ('csv', 'json', 'md', 'tex')}
    assert {path.name for path in out.iterdir()} == expected

    text = (out / 'report.md').read_text()
    cells = [[cell.strip() for cell in line.split('|')[1:-1]] for line in text.splitlines()]
    final = '42.0 ± 2.8', '–', '63.0 ± 4.2', '33.6 ± 2.3', '–', '42.0 ± 2.8', '50.4 ± 3.4'
    assert ['slow', '2', *final, '39.9 (150 epochs)'] in cells
    assert ['fast', '300', 'never', '–', '–'] in cells
    content = json.loads((out / 'report.json').read_text())
    assert content['command'].startswith('python tools/report.py')
    assert content['runs'][0]['attempts'][0]['versions'] == {'torch': '2.13'}
    slow, fast = csv.DictReader((out / 'report.csv').open())
    assert math.isclose(float(slow['AP_mean']), 0.42)
    assert (slow['AP_difference_mean'], slow['AP_difference_low']) == ('', '')
    of_fast = content['numbers'][1]
    for key in ('mean', 'low', 'high', 'p'):
        assert float(fast[f'AP_difference_{key}']) == of_fast['difference'][key]
    assert (
        float(fast['AP_std']) == of_fast['final']['AP']['std'] == pytest.approx(0.02828, abs=1e-5)
    )
    tex = (out / 'report.tex').read_text()
    assert r'42.0 $\pm$ 2.8' in tex
    assert tex.isascii()
    assert tex.count(r'\begin{tabular}') == tex.count(r'\end{tabular}') == tex.count(r'\toprule')


def test_a_report_is_written_again_from_its_json(study_dir, monkeypatch):
    study = read_study(study_dir)
    study.date, study.command = 'today', 'python tools/report.py x'
    path = study_dir / 'report.json'
    path.write_text(json_text(study, numbers(study, [0.2])))
    again = read_study(path)
    assert again == study  # Of runs, configs aside, to the last digit.
    assert again.runs[0].attempts == [Attempt(None, 'abc', {'torch': '2.13'}, {'cpu': 'x'})]
    assert numbers(again) == numbers(study)
    assert run_tool(monkeypatch, path, '--out', study_dir / 'out') == 0
    assert json.loads((study_dir / 'out/report.json').read_text())['date'] == 'today'
    path.write_text('{"study": "x"}')
    with pytest.raises(StudyError, match='report.json is not the report.json of a report'):
        read_reports(path)


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


def test_colours_belong_to_experiments(study_dir):
    """Also where one of them is not drawn."""
    study = read_study(study_dir)
    drawn = Figures(study, numbers(study))
    colours = {name: drawn.style(name)['color'] for name in APS}
    assert colours['slow'] != colours['fast']
    study.runs = study.runs_of('fast')
    assert Figures(study, numbers(study)).style('fast')['color'] == colours['fast']


def test_many_experiments_are_told_apart():
    names = [f'm{i}' for i in range(14)]
    drawn = Figures(Report('s', 'm0', names, [], []), [SimpleNamespace(name=n) for n in names])
    styles = [drawn.style(name) for name in names]
    for other in ('marker', 'linestyle'):
        assert len({(style['color'], style[other]) for style in styles}) == 14


def test_latex_escapes_names(study_dir):
    text = (study_dir / 'study.json').read_text().replace('"fast"', '"a_b & 5%"')
    (study_dir / 'study.json').write_text(text)
    study = read_study(study_dir)
    tex = latex(tables(study, numbers(study)))
    assert r'a\_b \& 5\%' in tex
    assert 'a_b' not in tex
