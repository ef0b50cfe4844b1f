"""Read the logs of a run: AP over iterations and time, and memory."""

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mmsmca.errors import shorten

# Names in the tables, and keys that MMDetection's CocoMetric logs.
METRICS = {
    'AP': 'coco/bbox_mAP',
    'AP50': 'coco/bbox_mAP_50',
    'AP75': 'coco/bbox_mAP_75',
    'AP_S': 'coco/bbox_mAP_s',
    'AP_M': 'coco/bbox_mAP_m',
    'AP_L': 'coco/bbox_mAP_l',
}
# Multiple of the median time per iteration above which the process was not running.
STOPPED = 10.0


@dataclass
class Log:
    """Log of a run.

    Attributes:
        evaluations: A row per evaluation in the order of training: ``step`` (epochs or iterations,
            whichever the run counts), ``iteration``, ``seconds`` (training time, evaluations
            excluded; NaN if no times were logged) and the names of ``METRICS`` (between 0 and 1;
            NaN where COCO's evaluation gives -1, as there are no objects of a size).
        length: Epochs or iterations to train; None if unknown.
        iterations: Last logged iteration.
        peak_memory_mib: Largest GPU memory, in MiB; None if none was logged.
        problems: What cannot be read or is missing.
        last: Last logged line of training; empty if there is none.
        epoch_length: Iterations per epoch, from where epochs begin; None until the second begins.
    """

    evaluations: pd.DataFrame
    length: int | None
    iterations: int
    peak_memory_mib: float | None
    problems: list[str]
    last: dict
    epoch_length: int | None

    @property
    def final_metrics(self) -> dict[str, float | None]:
        """Metrics at the end of training; empty if it was not evaluated or not reached."""
        final = self.evaluations[self.evaluations.step == self.length]
        return {} if final.empty else to_json(final.iloc[0][[*METRICS]])


@dataclass
class _Stretch:
    """Logged lines around evaluations: the iterations between which they took place."""

    after: int | None  # None: before the first line of an attempt.
    before: int | None = None  # None: after its last line.
    records: list[dict] = field(default_factory=list)


def to_json(row: pd.Series) -> dict[str, Any]:
    """Values of a row by column for JSON, which has no NaN."""
    return {str(key): None if pd.isna(value) else value for key, value in row.items()}


def read_log(folder: Path, train_cfg: Mapping) -> Log:
    """Read all ``scalars.json`` of a run; if those of a resumed run overlap, the later one wins.

    Lines that cannot be read and evaluations whose step is unknown are left out. Without the
    ``train_cfg`` of the run's config, all of their steps are.
    """
    by_epoch = 'max_epochs' in train_cfg
    unit = 'epoch' if by_epoch else 'iteration'
    length = train_cfg.get('max_epochs', train_cfg.get('max_iters'))
    lines: dict[int, dict] = {}  # Training lines by iteration.
    evaluated: dict[int, dict] = {}  # Evaluation lines by epoch or iteration.
    problems = []
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        name = path.relative_to(folder)
        records, unreadable = _records(path)
        if unreadable:
            total = unreadable + len(records)
            problems.append(f'{name}: {unreadable} of {total} lines cannot be read')
        first = next((record for record in records if 'iter' in record), None)
        if first is not None:
            lines = {i: line for i, line in lines.items() if i < first['iter']}
            redone = first.get('epoch', 1) if by_epoch else first['iter']
            evaluated = {step: line for step, line in evaluated.items() if step < redone}
        found: dict[int, list[dict]] = {}
        for stretch in _stretches(records, lines):
            if not train_cfg:
                continue
            steps = [record['step'] for record in stretch.records]
            # By default, MMEngine logs step 0 with each evaluation of a run that counts iterations.
            if not all(steps):
                steps = _steps_between(stretch, train_cfg)
                if len(steps) != len(stretch.records):
                    problems.append(
                        f'{name}: {len(stretch.records)} evaluations after iteration '
                        f'{stretch.after or "?"} are left out: the config has {len(steps)} there'
                    )
                    continue
            for step, record in zip(steps, stretch.records, strict=True):
                found.setdefault(step, []).append(record)
        for step, several in found.items():
            if len(several) > 1:
                problems.append(
                    f'{name}: {len(several)} evaluations at {unit} {step}; they are left out'
                )
                evaluated.pop(step, None)
            else:
                evaluated[step] = several[0]

    if missing := sorted({*_due(train_cfg, 1, max(evaluated, default=0))} - {*evaluated}):
        problems.append(f'no evaluation can be read at {unit} {shorten(missing)}')
    epoch_length, seconds = _epoch_length(lines), _clock(lines)
    rows = []
    for step, record in sorted(evaluated.items()):
        iteration = step if not by_epoch else step * epoch_length if epoch_length else record['at']
        rows.append(dict(step=step, iteration=iteration, seconds=seconds(iteration)))
        rows[-1] |= {metric: _ap(record.get(key)) for metric, key in METRICS.items()}
    iterations = max(lines, default=0)
    return Log(
        pd.DataFrame(rows, columns=['step', 'iteration', 'seconds', *METRICS]),
        length,
        iterations,
        max((line['memory'] for line in lines.values() if line.get('memory')), default=None),
        problems,
        lines.get(iterations, {}),
        epoch_length,
    )


def _records(path: Path) -> tuple[list[dict], int]:
    """Training and evaluation lines in order, and the number of unreadable lines."""
    records, unreadable = [], 0
    for line in path.read_text(errors='replace').splitlines():
        try:
            record = json.loads(line)
            is_evaluation = METRICS['AP'] in record
            numbers = [record[METRICS['AP']], record['step']] if is_evaluation else record.values()
            if not all(isinstance(number, int | float) for number in numbers):
                raise ValueError
        except (ValueError, TypeError, AttributeError, KeyError):
            unreadable += 1
            continue
        if is_evaluation or 'iter' in record:
            records.append(record)
    return records, unreadable


def _stretches(records: Sequence[dict], lines: dict[int, dict]) -> list[_Stretch]:
    """Evaluations of one attempt, by the training lines around them, which are added to lines."""
    stretches = [_Stretch(None)]
    for record in records:
        if 'iter' in record:
            stretches[-1].before = record['iter']
            lines[record['iter']] = record | dict(after_evaluation=bool(stretches[-1].records))
            stretches.append(_Stretch(record['iter']))
        else:
            stretches[-1].records.append(record | dict(at=stretches[-1].after or 1))
    return [stretch for stretch in stretches if stretch.records]


def _due(train_cfg: Mapping, first: int, last: float) -> list[int]:
    """Steps from ``first`` to ``last`` at which MMEngine evaluates; empty without a length."""
    length = train_cfg.get('max_epochs', train_cfg.get('max_iters'))
    if length is None:
        return []
    interval = train_cfg.get('val_interval', 1 if 'max_epochs' in train_cfg else 1000)
    steps = {*range(interval, length + 1, interval), length}
    begin = max(first, train_cfg.get('val_begin', 1))
    return sorted(step for step in steps if begin <= step <= last)


def _steps_between(stretch: _Stretch, train_cfg: Mapping) -> list[int]:
    """Iterations at which a stretch's evaluations were due, as many as it has if there are more.

    An attempt may begin and end anywhere, so that before its first line only the last of those due
    are known to have taken place, and after its last line only the first.
    """
    count = len(stretch.records)
    if stretch.after is None:
        return _due(train_cfg, 1, stretch.before - 1)[-count:] if stretch.before else []
    before = math.inf if stretch.before is None else stretch.before - 1
    steps = _due(train_cfg, stretch.after, before)
    return steps[:count] if stretch.before is None else steps


def _ap(value: object) -> float:
    return float(value) if isinstance(value, int | float) and value >= 0 else math.nan


def _epoch_length(lines: dict[int, dict]) -> int | None:
    """Iterations per epoch, from the first line of each epoch; None for a single epoch."""
    starts = {lines[i]['epoch']: i for i in sorted(lines, reverse=True) if 'epoch' in lines[i]}
    if len(starts) < 2:
        return None
    first, last = min(starts), max(starts)
    return round((starts[last] - starts[first]) / (last - first))


def _clock(lines: dict[int, dict]) -> Callable[[int], float]:
    """Training time until an iteration, as a function: the cumulative logged time per iteration.

    MMEngine counts the end of an evaluation, after its last image, and the checkpoint saved with it
    as time spent waiting for the next training batch. This wait is replaced by the run's median
    wait. If iterations take more than :data:`STOPPED` times the run's median, the process was
    stopped or the machine was asleep, and the median replaces them. Iterations after the last
    logged line are assumed to take as long as those before it. NaN if no times were logged.
    """
    timed = {i: lines[i] for i in sorted(lines) if 'time' in lines[i]}
    if not timed:
        return lambda iteration: math.nan
    waits = [line['data_time'] for line in timed.values() if 'data_time' in line]
    waiting = statistics.median(waits) if waits else 0.0
    usual = statistics.median(line['time'] for line in timed.values())
    rates = []
    for line in timed.values():
        rate = line['time']
        if line['after_evaluation']:
            rate -= max(0.0, line.get('data_time', 0.0) - waiting)
        rates.append(usual if rate > STOPPED * usual else rate)
    iterations = [0, *timed]
    total = [0.0, *np.cumsum(np.diff(iterations) * rates)]

    def seconds(iteration: int) -> float:
        beyond = max(0, iteration - iterations[-1])
        return float(np.interp(iteration, iterations, total)) + rates[-1] * beyond

    return seconds
