"""A report's tables, as rows of text."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from .logs import METRICS
from .results import Report
from .statistics import Difference, Numbers, Value

DASH = '–'


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        name: Label for cross-references.
        title: Title, one line.
        head: Headings of the columns.
        rows: Rows of cells, one cell per column.
        note: Text below the table that explains it.
    """

    name: str
    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ''


def percent(number: Value | float | None, signed: bool = False) -> str:
    """Format an AP in percent, with its deviation if it has one."""
    if number is None:
        return DASH
    if isinstance(number, Value):
        text = percent(number.mean, signed)
        return text if number.std is None else f'{text} ± {100 * number.std:.1f}'
    return f'{100 * number:{"+" if signed else ""}.1f}'.replace('-', '−')


def plain(number: Value | float | None, unit: float = 1) -> str:
    """Format a number in a unit to three digits, or to more before the decimal point.

    Like :func:`percent`, it appends the deviation if there is one.
    """
    if number is None:
        return DASH
    if isinstance(number, Value):
        text = plain(number.mean, unit)
        return text if number.std is None else f'{text} ± {plain(number.std, unit)}'
    number /= unit
    if abs(number) < 1:
        return f'{number:.3g}'
    return f'{number:.{max(0, 2 - int(math.log10(abs(number))))}f}'


def time_unit(seconds: float) -> tuple[str, int]:
    """Unit suited to times of up to some seconds, and its length in seconds."""
    if seconds >= 7200:
        return 'hours', 3600
    return ('minutes', 60) if seconds >= 120 else ('seconds', 1)


def tables(report: Report, numbers: Sequence[Numbers]) -> list[Table]:
    """All tables of a report; empty ones are left out."""
    found = [
        results(report, numbers),
        costs(numbers),
        convergence(report, numbers),
        missing(report),
    ]
    return [table for table in found if table.rows]


def results(report: Report, numbers: Sequence[Numbers]) -> Table:
    """Table of the APs at the end of training."""
    unequal = not report.budget and len({length for of in numbers for length in of.lengths}) > 1
    with_length = report.budget or unequal
    head = ['experiment', 'seeds', *([report.unit] if with_length else []), 'AP']
    head += [f'vs {report.baseline}', *list(METRICS)[1:]]
    rows = [
        [
            of.name,
            str(of.seeds),
            *([', '.join(f'{length:,}' for length in of.lengths)] if with_length else []),
            percent(of.final['AP']),
            _difference(of.difference),
            *(percent(of.final[name]) for name in list(METRICS)[1:]),
        ]
        for of in numbers
    ]
    note = 'Box AP (COCO, IoU 0.50:0.95) in percent after the last iteration'
    if any(of.seeds > 1 for of in numbers):
        note += ': mean and sample standard deviation over the finished seeds'
    note += '.'
    if unequal:
        note += f' **Not all trained for the same number of {report.unit}**: budgets make them '
        note += 'comparable.'
    if tested := sum(of.difference is not None and of.difference.p is not None for of in numbers):
        correction = f", after Holm's correction for the {tested} tests of this table"
        note += (
            ' Differences are paired, over the seeds that both have, with the 95 % t interval of '
            'their mean. A star marks a significant difference: a paired t test at 5 %'
            f'{correction * (tested > 1)}.'
        )
    if report.splits:
        note += f' Evaluated on {", ".join(report.splits)}.'
    if report.chosen:
        note += f' {report.chosen}'
    title = f'Results: {report.budget}' if report.budget else 'Results'
    return Table('results', title, head, rows, note)


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return DASH
    text = percent(difference.mean, signed=True)
    if difference.low is None:
        return text
    low, high = (percent(end, signed=True) for end in (difference.low, difference.high))
    return f'{text} [{low}, {high}]{"*" if difference.significant else ""}'


def costs(numbers: Sequence[Numbers]) -> Table:
    """Table of the costs of training."""
    totals = [of.total_seconds.mean for of in numbers if of.total_seconds]
    unit, length = time_unit(max(totals, default=0))
    head = ['experiment', 'ms per iteration', f'training, {unit}', 'peak memory, MiB']
    rows = [
        [
            of.name,
            plain(of.iteration_seconds, 1e-3),
            plain(of.total_seconds.mean if of.total_seconds else None, length),
            plain(of.peak_memory_mib),
        ]
        for of in numbers
    ]
    note = (
        'Time per iteration, the median over the stretches between evaluations, with the deviation '
        'over the seeds, and the total time without evaluations, its mean. Memory: of the GPU, or '
        'without one of the process.'
    )
    # Drops columns that contain only dashes.
    keep = [i for i in range(len(head)) if any(row[i] != DASH for row in rows)]
    rows = [[row[i] for i in keep] for row in rows] if len(keep) > 1 else []
    return Table('costs', 'Costs of training', [head[i] for i in keep], rows, note)


def convergence(report: Report, numbers: Sequence[Numbers]) -> Table:
    """Table of the training needed to reach APs."""
    (baseline,) = (of for of in numbers if of.name == report.baseline)
    head = ['experiment', *(f'AP {percent(level.AP)}' for level in baseline.reached)]
    with_final = baseline.ap is not None
    if with_final:
        whole = max(baseline.lengths, default=0)
        unit, length = time_unit(baseline.total_seconds.mean if baseline.total_seconds else 0)
        head[-1] += f' (final of {report.baseline})'
        head += [f'of the {report.unit} of {report.baseline}', f'training until then, {unit}']
    rows = []
    for of in numbers if baseline.reached else ():
        if of.seeds:
            row = [of.name, *(_step(level.step, level.seeds) for level in of.reached)]
            if with_final:
                last = of.reached[-1]
                row.append(plain(last.step / whole if last.step and whole else None))
                row.append(plain(last.seconds and last.seconds / length))
            rows.append(row)
    note = (
        f'{report.unit.capitalize()} until the first evaluation with a mean AP over the seeds of '
        'at least that; in brackets the first and the last seed by itself, which can both be '
        'earlier if an AP falls again. The evaluations are as far apart as the curves show.'
    )
    return Table('convergence', f'{report.unit.capitalize()} to reach an AP', head, rows, note)


def _step(step: int | None, seeds: list[int | None]) -> str:
    text = 'never' if step is None else str(step)
    found = [seed for seed in seeds if seed is not None]
    if len(seeds) < 2 or not found:
        return text
    latest = str(max(found)) if len(found) == len(seeds) else 'never'
    return text if str(min(found)) == latest == text else f'{text} ({min(found)} to {latest})'


def missing(report: Report) -> Table:
    """Table of the runs without final metrics."""
    columns = report.runs.loc[report.runs.AP.isna(), ['experiment', 'seed', 'name', 'state']]
    rows = [
        [experiment, DASH if seed != seed else f'{seed:.0f}', name, state]
        for experiment, seed, name, state in columns.itertuples(index=False)
    ]
    head = ['experiment', 'seed', 'run', 'state']
    note = 'No AP above includes these runs; times per iteration and memory do.'
    return Table('missing', 'Not finished', head, rows, note)
