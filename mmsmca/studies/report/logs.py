"""Read the logs of a run: AP over iterations and time, and memory."""

import json
import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

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
class Evaluation:
    """One evaluation during training.

    Attributes:
        iteration: Iterations trained by then.
        epoch: Epochs trained by then; None if the run counts iterations.
        metrics: Metrics by the names of ``METRICS``, between 0 and 1; None where COCO's evaluation
            gives -1, as there are no objects of a size.
        seconds: Training time by then, evaluations excluded; None if no times were logged.
    """

    iteration: int
    epoch: int | None
    metrics: dict[str, float | None]
    seconds: float | None = None


@dataclass
class Log:
    """Log of a run.

    Attributes:
        evaluations: Evaluations in the order of training.
        iterations: Last logged iteration.
        peak_memory_mib: Largest GPU memory, in MiB; None if none was logged.
        problems: Messages about unreadable lines, one per file.
        last: Last logged line of training; empty if there is none.
        epoch_length: Iterations per epoch, from where epochs begin; None until the second begins.
    """

    evaluations: list[Evaluation]
    iterations: int
    peak_memory_mib: float | None
    problems: list[str]
    last: dict
    epoch_length: int | None


def read_log(folder: Path, train_cfg: Mapping, log_interval: int = 10) -> Log:
    """Read all ``scalars.json`` of a run; if those of a resumed run overlap, the later one wins.

    Args:
        folder: MMEngine's work directory of the run.
        train_cfg: ``train_cfg`` of the run's config.
        log_interval: Iterations between two logged lines. Defaults to MMEngine's 10.

    Returns:
        The log. Unreadable lines are left out and counted in ``problems``.
    """
    by_epoch = 'max_epochs' in train_cfg
    lines: dict[int, dict] = {}  # Training lines by iteration.
    evaluations: dict[int, Evaluation] = {}  # By epoch or by iteration.
    problems = []
    for path in sorted(folder.glob('*/vis_data/scalars.json')):
        records, unreadable = _records(path)
        if unreadable:
            problems.append(
                f'{path.relative_to(folder)}: {unreadable} of {unreadable + len(records)} lines '
                'cannot be read'
            )
        first = next((record for record in records if 'iter' in record), None)
        if first is None:
            continue  # Nothing trained: at most the evaluation of a checkpoint.
        lines = {i: line for i, line in lines.items() if i < first['iter']}
        redone = first.get('epoch', 1) if by_epoch else first['iter']
        evaluations = {key: value for key, value in evaluations.items() if key < redone}

        reached = max(1, first['iter'] - log_interval + 1)
        after_evaluation = False
        for record in records:
            if 'iter' in record:
                reached = max(reached, record['iter'])
                lines[record['iter']] = record | dict(after_evaluation=after_evaluation)
                after_evaluation = False
            elif by_epoch:
                epoch = record['step']
                evaluations[epoch] = Evaluation(reached, epoch, _metrics(record))
            else:
                iteration = record['step'] or _evaluated_at(reached, train_cfg)
                evaluations[iteration] = Evaluation(iteration, None, _metrics(record))
                reached = iteration + 1
                after_evaluation = True

    epoch_length, seconds = _epoch_length(lines), _clock(lines)
    for evaluation in evaluations.values():
        if evaluation.epoch and epoch_length:
            evaluation.iteration = evaluation.epoch * epoch_length
        evaluation.seconds = seconds(evaluation.iteration)
    iterations = max(lines, default=0)
    return Log(
        [evaluations[key] for key in sorted(evaluations)],
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


def _metrics(record: dict) -> dict[str, float | None]:
    values = {name: record.get(key, -1) for name, key in METRICS.items()}
    return {name: value if value >= 0 else None for name, value in values.items()}


def _evaluated_at(reached: int, train_cfg: Mapping) -> int:
    """Iteration of an evaluation between the last logged line and the next one.

    MMEngine logs evaluations by epoch, so that their step is 0 if the run counts iterations.
    """
    interval = train_cfg.get('val_interval', 1)
    return min(math.ceil(reached / interval) * interval, train_cfg.get('max_iters', math.inf))


def _epoch_length(lines: dict[int, dict]) -> int | None:
    """Iterations per epoch, from the first line of each epoch; None for a single epoch."""
    starts = {lines[i]['epoch']: i for i in sorted(lines, reverse=True) if 'epoch' in lines[i]}
    if len(starts) < 2:
        return None
    first, last = min(starts), max(starts)
    return round((starts[last] - starts[first]) / (last - first))


def _clock(lines: dict[int, dict]) -> Callable[[int], float | None]:
    """Training time until an iteration, as a function: the cumulative logged time per iteration.

    MMEngine counts the end of an evaluation, after its last image, and the checkpoint saved with it
    as time spent waiting for the next training batch. This wait is replaced by the run's median
    wait. If iterations take more than :data:`STOPPED` times the run's median, the process was
    stopped or the machine was asleep, and the median replaces them. Iterations after the last
    logged line are assumed to take as long as those before it.
    """
    timed = {i: lines[i] for i in sorted(lines) if 'time' in lines[i]}
    if not timed:
        return lambda iteration: None
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
