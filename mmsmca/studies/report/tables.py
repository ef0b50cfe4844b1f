"""A study's tables: once as rows, written as Markdown, LaTeX and CSV."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from tabulate import tabulate

from .logs import METRICS
from .published import Published, literature
from .results import Study
from .statistics import (
    FEWEST_SEEDS,
    Paired,
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

DASH = '–'
SIZES = ('AP', 'AP_S', 'AP_M', 'AP_L')
FRACTIONS = (0.5, 0.75, 0.9)
LATEX = str.maketrans(
    {character: f'\\{character}' for character in '&%$#_{}'}
    | {'^': r'\textasciicircum{}', '~': r'\textasciitilde{}', '`': ''}
)


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        name: For references.
        title: A line of what it is.
        head: Of the columns.
        rows: Cells, as many as there are columns.
        note: What one has to know to read it.
    """

    name: str
    title: str
    head: list[str]
    rows: list[list[str]]
    note: str = ''


def percent(number: Value | float | None, signed: bool = False) -> str:
    """An AP, in percent; with its deviation if it has one."""
    if number is None:
        return DASH
    if not isinstance(number, Value):
        number = Value(number, None, 1)
    text = f'{100 * number.mean:{"+" if signed else ""}.1f}'.replace('-', '−')
    return text if number.std is None else f'{text} ± {100 * number.std:.1f}'


def plain(number: float | None) -> str:
    """A number to three digits, but never rounded before its decimal point."""
    if number is None:
        return DASH
    if abs(number) < 1:
        return f'{number:.3g}'
    return f'{number:.{max(0, 2 - int(math.log10(abs(number))))}f}'


def time_unit(seconds: float) -> tuple[str, int]:
    """Unit that suits times of up to some seconds, and its length."""
    if seconds >= 7200:
        return 'hours', 3600
    return ('minutes', 60) if seconds >= 120 else ('seconds', 1)


def tables(
    study: Study, costs: dict, thresholds: list[float] | None = None, compare: Sequence[str] = ()
) -> list[Table]:
    """All tables of a study; those that have nothing to show are left out.

    Args:
        study: The study.
        costs: As :func:`.costs.load` returns them.
        thresholds: APs, between 0 and 1, to reach. Defaults to fractions of the baseline's final
            AP, which is always among them.
        compare: Names of experiments to compare every other one to at equal training time.
            Defaults to the one that is best then, and the baseline.
    """
    found = [
        results(study),
        cost_table(study, costs),
        calibration(study),
        convergence(study, thresholds),
        # Cut trainings say less than those that budgets fit to one time.
        *([] if study.title else at_equal_time(study, compare)),
        published_table(study),
        missing(study),
    ]
    return [table for table in found if table and table.rows]


def results(study: Study) -> Table:
    """AP at the end of training."""
    baseline = final_metrics(study[study.baseline])
    any_paired = False
    has_published = any(experiment.published for experiment in study.experiments)
    lengths = [{run.length for run in e.finished if run.length} for e in study.experiments]
    unequal = not study.title and len(set().union(*lengths)) > 1
    rows = []
    for experiment, lengths_of_runs in zip(study.experiments, lengths, strict=True):
        metrics = final_metrics(experiment)
        against = DASH
        if experiment.name != study.baseline:
            pairs_of_seeds = paired(experiment, study[study.baseline])
            if pairs_of_seeds is None:
                delta = difference(metrics['AP'], baseline['AP'])
                against = percent(delta and Value(delta.mean, None, 1), signed=True)
            else:
                against = _paired(pairs_of_seeds)
                any_paired |= len(pairs_of_seeds.differences) > 1
        row = [
            experiment.name,
            f'{len(experiment.finished)}',
            percent(metrics['AP']),
            against,
            *(percent(metrics[name]) for name in list(METRICS)[1:]),
        ]
        if study.title or unequal:
            row.insert(2, ', '.join(f'{length:,}' for length in sorted(lengths_of_runs)))
        if has_published:
            row.append(_published_ap(experiment.published))
        rows.append(row)
    head = ['experiment', 'seeds', 'AP', f'vs {study.baseline}', *list(METRICS)[1:]]
    note = 'Box AP (COCO, IoU 0.50:0.95) in percent after the last iteration: mean and sample '
    note += 'standard deviation over the finished seeds.'
    if study.title or unequal:
        head.insert(2, study.unit)
    if unequal:
        note += f' **Not all trained for as many {study.unit}**: budgets would compare equals.'
    if any_paired:
        note += (
            ' Differences are paired, seed by seed, with the 95 % bootstrap interval of their mean '
            f'over the seeds; * marks those that {FEWEST_SEEDS} or more seeds support: zero lies '
            'outside. Of three seeds that means that all agree.'
        )
    if study.splits:
        note += f' Evaluated on {", ".join(study.splits)}.'
    if study.chosen:
        note += f' {study.chosen}'
    if has_published:
        head.append('published, on COCO')
        note += ' The last column is not measured here, see the published numbers below.'
    title = f'Results: {study.title}' if study.title else 'Results'
    return Table('results', title, head, rows, note)


def _paired(difference_of_seeds: Paired) -> str:
    text = percent(difference_of_seeds.mean, signed=True)
    if len(difference_of_seeds.differences) == 1:
        return text
    ends = (difference_of_seeds.low, difference_of_seeds.high)
    low, high = (percent(end, signed=True) for end in ends)
    return f'{text} [{low}, {high}]{"*" if difference_of_seeds.supported else ""}'


def _published_ap(published: Published | None) -> str:
    if published is None:
        return DASH
    return f'{percent(published.metrics["AP"])} ({published.epochs} epochs)'


def cost_table(study: Study, costs: dict) -> Table:
    """What training and inference take."""
    measured = costs.get('experiments', {})
    totals = {e.name: total_seconds(e) for e in study.experiments}
    unit, length = time_unit(max((total.mean for total in totals.values() if total), default=0))
    rows = []
    for experiment in study.experiments:
        runs = [run.log for run in experiment.runs]
        seconds = value(run.iteration_seconds for run in runs)
        total = totals[experiment.name]
        memory = [run.peak_memory_mib for run in runs if run.peak_memory_mib]
        cost = measured.get(experiment.name, {})
        rows.append(
            [
                experiment.name,
                plain(cost.get('parameters') and cost['parameters'] / 1e6),
                plain(cost.get('flops') and cost['flops'] / 1e9),
                plain(cost.get('latency_ms')),
                _milliseconds(seconds),
                plain(total.mean / length if total else None),
                plain(max(memory) if memory else None),
            ]
        )
    head = [
        'experiment', 'parameters, M', 'GFLOPs', 'latency, ms', 'training, ms per iteration',
        f'training, {unit}', 'peak memory, MiB',
    ]  # fmt: skip
    note = 'Training: median of the logged times per iteration, and its total without the '
    note += 'evaluations; means over the seeds, of the former with the deviation. Memory: of the '
    note += 'GPU, or without one of the process. '
    if measured:
        height, width = next(iter(measured.values()))['image']
        environment = costs['environment']
        note += (
            f'GFLOPs are 10^9 multiply-adds; they and the latency (median of {costs["rounds"]}) '
            f'are of one image of {width} x {height} on {environment["hardware"]}, '
            f'{environment["threads"]} threads, {environment["date"]}.'
        )
    else:
        note += 'Parameters, GFLOPs and latency have not been measured (`--costs` does).'
    # A column of dashes says nothing.
    keep = [i for i in range(len(head)) if any(row[i] != DASH for row in rows)]
    rows = [[row[i] for i in keep] for row in rows] if len(keep) > 1 else []
    return Table('costs', 'Costs', [head[i] for i in keep], rows, note)


def calibration(study: Study) -> Table:
    """Time per iteration that budgets in training time were computed with."""
    measured = study.calibration.get('experiments', {})
    rows = []
    for experiment in study.experiments:
        if entry := measured.get(experiment.name):
            milliseconds = [1e3 * x for x in (entry['seconds'], *entry['quartiles'])]
            median, low, high = map(plain, milliseconds)
            rows.append([experiment.name, median, f'{low} to {high}'])
    note = ''
    if rows:
        hardware = study.calibration['hardware']
        note = (
            f'Median and quartiles of {study.calibration["iterations"]} iterations, one experiment '
            f'after the other and nothing else at work, on {hardware["cores"]} cores of '
            f'{", ".join(hardware["gpus"]) or hardware["cpu"]}: what budgets in training time are '
            'computed with.'
        )
    head = ['experiment', 'ms per iteration', 'quartiles']
    return Table('calibration', 'Calibration', head, rows, note)


def _milliseconds(seconds: Value | None) -> str:
    if seconds is None or seconds.std is None:
        return plain(1e3 * seconds.mean if seconds else None)
    return f'{plain(1e3 * seconds.mean)} ± {plain(1e3 * seconds.std)}'


def ap_thresholds(study: Study, thresholds: list[float] | None) -> list[float]:
    """APs to reach: the given ones or fractions of the baseline's final AP, then that itself."""
    final = final_metrics(study[study.baseline])['AP']
    if final is None:
        return sorted(thresholds or [])
    chosen = [f * final.mean for f in FRACTIONS] if thresholds is None else sorted(thresholds)
    return [*chosen, final.mean]


def convergence(study: Study, thresholds: list[float] | None) -> Table | None:
    """When APs are reached."""
    final = final_metrics(study[study.baseline])['AP']
    levels = ap_thresholds(study, thresholds)
    if not levels:
        return None
    head = ['experiment', *(f'AP {percent(level)}' for level in levels)]
    if final:
        head[-1] += f' (final of {study.baseline})'
        whole = curve(study[study.baseline], study.unit)[-1]
        unit, length = time_unit(whole.seconds or 0)
        head += [f'of the {study.unit} of {study.baseline}', f'training until then, {unit}']
    rows = []
    for experiment in study.experiments:
        if not experiment.finished:
            continue
        found = [reached(experiment, level, study.unit) for level in levels]
        row = [experiment.name, *(_step(r.step, r.seeds) for r in found)]
        if final:
            last = found[-1]
            row.append(plain(last.step and last.step / whole.step))
            row.append(plain(last.seconds and last.seconds / length))
        rows.append(row)
    note = (
        f'{study.unit.capitalize()} until the first evaluation with a mean AP over the seeds of '
        'at least that; in brackets the first and the last seed by itself, which can both be '
        'earlier if an AP falls again. The evaluations are as far apart as the curves show.'
    )
    return Table('convergence', f'{study.unit.capitalize()} to reach an AP', head, rows, note)


def _step(step: int | None, seeds: list[int | None]) -> str:
    text = 'never' if step is None else str(step)
    if len(seeds) < 2:
        return text
    found = [seed for seed in seeds if seed is not None]
    if not found:
        return text
    latest = str(max(found)) if len(found) == len(seeds) else 'never'
    return text if str(min(found)) == latest == text else f'{text} ({min(found)} to {latest})'


def at_equal_time(study: Study, compare: Sequence[str] = ()) -> list[Table]:
    """Experiments at the same training time, all together and in pairs."""
    names = timed(study)
    if len(names) < 2:
        return []
    budget, points = equal_time(study, names)
    totals = {name: total.mean for name in names if (total := total_seconds(study[name]))}
    fastest = min(totals, key=lambda name: totals[name])
    reference = points.get(study.baseline)
    unit, length = time_unit(budget)
    rows = []
    for name in names:
        point = points[name]
        if point is None:
            rows.append([name, DASH, DASH, *[DASH] * len(SIZES), DASH])
            continue
        delta = DASH
        if reference and name != study.baseline:
            delta = percent(point.ap.mean - reference.ap.mean, signed=True)
        rows.append(
            [
                name,
                str(point.step),
                plain(point.seconds and point.seconds / length),
                *(percent(point.metrics[size]) for size in SIZES),
                delta,
            ]
        )
    title = (
        f'At equal training time: {plain(budget / length)} {unit}, the whole training of {fastest}'
    )
    head = ['experiment', study.unit, f'training, {unit}', *SIZES, f'vs {study.baseline}']
    note = (
        'AP at the last evaluation that is not later; evaluations do not count as training time. '
        'What takes longer per iteration is cut off before its learning rate has dropped, if it '
        'drops at the end.'
    )
    together = Table('equal_time', title, head, rows, note)

    aps = {name: point.ap.mean for name, point in points.items() if point}
    best = max(aps, key=lambda name: aps[name])
    others = list(dict.fromkeys(compare or [best, study.baseline]))
    rows = []
    for pair in pairs(study, names, [name for name in others if name in names]):
        rows.append(
            [
                f'{pair["experiment"]} − {pair["reference"]}',
                plain(pair['seconds'] / length),
                *(percent(pair['difference'][size], signed=True) for size in SIZES),
            ]
        )
    note = (
        "At the whole training time of the faster one of the pair. ± is Welch's 95 % interval of "
        'the difference, from the deviations over the seeds: one that includes 0 says little.'
    )
    head = ['pair', f'training, {unit}', *SIZES]
    return [together, Table('pairs', 'Differences at equal training time', head, rows, note)]


def pairs(study: Study, names: list[str], references: list[str]) -> list[dict]:
    """Differences of every experiment to each reference, at the faster one's training time."""
    rows, seen = [], set()
    for reference in references:
        for name in names:
            pair = frozenset((name, reference))
            if len(pair) < 2 or pair in seen:
                continue
            seen.add(pair)
            seconds, points = equal_time(study, [name, reference])
            a, b = points[name], points[reference]
            if a and b:
                differences = {n: difference(a.metrics[n], b.metrics[n]) for n in METRICS}
                rows.append(
                    dict(
                        experiment=name,
                        reference=reference,
                        seconds=seconds,
                        difference=differences,
                    )
                )
    return rows


def published_table(study: Study) -> Table | None:
    """Numbers of others, if the study refers to any."""
    own = [(e.name, e.published) for e in study.experiments if e.published]
    if not own:
        return None
    rows = [
        [
            name,
            published.name,
            *(percent(published.metrics.get(size)) for size in SIZES),
            str(published.epochs),
            published.source,
        ]
        for name, published in [*own, *((DASH, published) for published in literature())]
    ]
    head = ['experiment', 'published as', *SIZES, 'epochs', 'source']
    note = (
        'Not measured here: box AP on COCO val2017 in percent, with ResNet-50 and each with its '
        'own recipe. Rows without an experiment are given for comparison.'
    )
    return Table('published', 'Published numbers', head, rows, note)


def missing(study: Study) -> Table:
    """Runs that are not finished."""
    rows = [
        [row['experiment'], DASH if row['seed'] is None else str(row['seed']), row['run'],
         row['state']]
        for row in study.missing
    ]  # fmt: skip
    head = ['experiment', 'seed', 'run', 'state']
    return Table('missing', 'Not finished', head, rows, 'These count in no number above.')


def markdown(found: list[Table]) -> str:
    """Write tables as Markdown, one section each."""
    parts = []
    for table in found:
        rows = [[cell.replace('|', r'\|') for cell in row] for row in table.rows]
        text = tabulate(rows, table.head, tablefmt='github', disable_numparse=True)
        parts.append('\n\n'.join(filter(None, [f'## {table.title}', text, table.note])))
    return '\n\n'.join(parts) + '\n'


def latex(found: list[Table]) -> str:
    """Write tables as LaTeX; they need the package booktabs."""
    parts = ['% \\usepackage{booktabs}']
    for table in found:
        body = tabulate(table.rows, table.head, tablefmt='latex_booktabs', disable_numparse=True)
        caption = f'{table.title}. {table.note}'.translate(LATEX)
        lines = ['\\begin{table}', '\\centering', f'\\caption{{{caption}}}',
                 f'\\label{{tab:{table.name}}}', body, '\\end{table}']  # fmt: skip
        parts.append('\n'.join(lines))
    text = '\n\n'.join(parts) + '\n'
    for character, command in (('±', r'$\pm$'), ('−', '$-$'), (DASH, '--')):
        text = text.replace(character, command)
    return re.sub(r'\bAP\\_([SML])\b', r'AP$_{\1}$', re.sub(r'\bAP(50|75)\b', r'AP$_{\1}$', text))
