"""A study's numbers for programs: all of them in one object, and a row per experiment."""

import csv
import io
from dataclasses import asdict
from datetime import datetime, timezone

from .logs import METRICS
from .published import literature
from .results import Experiment, Run, Study
from .statistics import (
    Point,
    Value,
    curve,
    difference,
    equal_time,
    final_metrics,
    paired,
    reached,
    timed,
    total_seconds,
    value,
)
from .tables import SIZES, ap_thresholds, pairs


def summary(
    study: Study, costs: dict, thresholds: list[float] | None, compare: list[str], command: str
) -> dict:
    """Everything that the report shows, as it was measured: APs between 0 and 1, seconds, MiB.

    Args:
        study: The study.
        costs: As :func:`.costs.load` returns them.
        thresholds: As for :func:`.tables.tables`.
        compare: As for :func:`.tables.tables`.
        command: That made the report.
    """
    names = timed(study)
    at_equal_time = None
    if len(names) > 1:
        budget, points = equal_time(study, names)
        at_equal_time = dict(
            seconds=budget,
            experiments={name: _point(points[name]) for name in names},
            pairs=[
                pair | dict(difference=_values(pair['difference']))
                for pair in pairs(study, names, compare or names)
            ],
        )
    return dict(
        study=study.name,
        budget=study.title or None,
        chosen=study.chosen or None,
        splits=study.splits,
        calibration=study.calibration or None,
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        command=command,
        environments=_environments(study),
        units=dict(AP='0 to 1', seconds='training, without evaluations', memory='MiB'),
        baseline=study.baseline,
        experiments=[_experiment(study, e, costs, thresholds) for e in study.experiments],
        equal_time=at_equal_time,
        literature=[asdict(published) for published in literature()],
        costs=costs or None,
        runs=[_run(run) for experiment in study.experiments for run in experiment.runs],
        not_finished=study.missing,
        problems=study.problems,
    )


def _experiment(
    study: Study, experiment: Experiment, costs: dict, thresholds: list[float] | None
) -> dict:
    final = final_metrics(experiment)
    baseline = final_metrics(study[study.baseline])
    logs = [run.log for run in experiment.runs]
    memory = [log.peak_memory_mib for log in logs if log.peak_memory_mib]
    measured = costs.get('experiments', {}).get(experiment.name, {})
    pairs_of_seeds = paired(experiment, study[study.baseline])
    return dict(
        name=experiment.name,
        seeds=len(experiment.finished),
        final=_values(final),
        vs_baseline={n: _value(difference(final[n], baseline[n])) for n in METRICS},
        paired_vs_baseline=pairs_of_seeds
        and dict(**asdict(pairs_of_seeds), supported=pairs_of_seeds.supported),
        reached=[
            dict(AP=level, unit=study.unit, **asdict(reached(experiment, level, study.unit)))
            for level in ap_thresholds(study, thresholds)
        ],
        iteration_seconds=_value(value(log.iteration_seconds for log in logs)),
        total_seconds=_value(total_seconds(experiment)),
        peak_memory_mib=max(memory, default=None),
        parameters=measured.get('parameters'),
        flops=measured.get('flops'),
        latency_ms=measured.get('latency_ms'),
        published=experiment.published and asdict(experiment.published),
        curve=_curve(curve(experiment, study.unit)),
    )


def _curve(points: list[Point]) -> dict[str, list]:
    """Columns; of the metrics the means."""
    columns = {
        key: [getattr(point, key) for point in points]
        for key in ('iteration', 'step', 'seconds', 'lowest', 'highest')
    }
    for name in SIZES:
        values = [point.metrics[name] for point in points]
        columns[name] = [number and number.mean for number in values]
    return columns


def _run(run: Run) -> dict:
    evaluations = run.log.evaluations
    return dict(
        experiment=run.experiment,
        seed=run.seed,
        run=run.name,
        id=run.info.get('id'),
        git=run.attempts[-1].get('git'),
        started=run.info.get('started'),
        state=run.state,
        iterations=[e.iteration for e in evaluations],
        seconds=[e.seconds for e in evaluations],
        AP=[e.metrics['AP'] for e in evaluations],
        final=evaluations[-1].metrics if evaluations else None,
    )


def _environments(study: Study) -> list[dict]:
    """Versions and hardware, each once, with the runs that were made with them."""
    found: list[dict] = []
    for experiment in study.experiments:
        for run in experiment.runs:
            for attempt in run.attempts:
                environment = {key: attempt.get(key) for key in ('versions', 'hardware')}
                same = next((f for f in found if environment.items() <= f.items()), None)
                if same is None:
                    found.append(same := environment | dict(runs=[]))
                if run.name not in same['runs']:
                    same['runs'].append(run.name)
    return found


def _value(number: Value | None) -> dict | None:
    return asdict(number) if number else None


def _values(numbers: dict[str, Value | None]) -> dict[str, dict | None]:
    return {name: _value(number) for name, number in numbers.items()}


def _point(point: Point | None) -> dict | None:
    if point is None:
        return None
    return dict(
        iteration=point.iteration,
        step=point.step,
        seconds=point.seconds,
        **_values(point.metrics),
    )


def csv_table(content: dict) -> str:
    """The experiments of a summary as CSV, one row each.

    Args:
        content: As :func:`summary` returns it.
    """
    rows = []
    at_equal_time = (content['equal_time'] or {}).get('experiments', {})
    for experiment in content['experiments']:
        row = dict(study=content['study'], experiment=experiment['name'], seeds=experiment['seeds'])
        for name in METRICS:
            row |= _columns(name, experiment['final'][name])
        row |= _columns('AP_vs_baseline', experiment['vs_baseline']['AP'])
        for i, level in enumerate(experiment['reached']):
            final = i == len(experiment['reached']) - 1
            label = 'baseline' if final else f'{level["AP"]:.4g}'
            row[f'{level["unit"]}_to_AP_{label}'] = level['step']
        row |= _columns('iteration_seconds', experiment['iteration_seconds'])
        row |= _columns('total_seconds', experiment['total_seconds'])
        for key in ('peak_memory_mib', 'parameters', 'flops', 'latency_ms'):
            row[key] = experiment[key]
        point = at_equal_time.get(experiment['name']) or {}
        for name in METRICS:
            row[f'equal_time_{name}'] = (point.get(name) or {}).get('mean')
        published = experiment['published'] or {}
        row['published_COCO_AP'] = published.get('metrics', {}).get('AP')
        row['published_epochs'] = published.get('epochs')
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _columns(name: str, number: dict | None) -> dict:
    return {f'{name}_mean': number and number['mean'], f'{name}_std': number and number['std']}
