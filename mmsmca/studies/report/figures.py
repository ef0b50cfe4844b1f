"""Curves: AP over training, over training time, and against what it costs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib

matplotlib.use('agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from .results import Study  # noqa: E402
from .statistics import Point, curve, final_metrics, total_seconds, value  # noqa: E402
from .tables import time_unit  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Okabe and Ito's, told apart by the colour-blind too; the yellow is hardly seen on white.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
MARKERS = 'osD^vPX'
LINES = ('-', '--', ':', '-.')
FORMATS = ('png', 'svg')
STYLE: 'dict[RcKeyType, Any]' = {
    'font.size': 11,
    'axes.grid': True,
    'axes.axisbelow': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'grid.alpha': 0.3,
    'legend.frameon': False,
    'svg.hashsalt': 'mmsmca',
    'savefig.dpi': 130,
}


def write_figures(study: Study, costs: dict, folder: Path) -> list[Path]:
    """Draw what there is to draw, as PNG and SVG.

    Args:
        study: The study.
        costs: As :func:`.costs.load` returns them.
        folder: Where to.

    Returns:
        The files.
    """
    files = []
    with plt.rc_context(STYLE):
        for name, figure in _figures(study, costs):
            for suffix in FORMATS:
                path = folder / f'{name}.{suffix}'
                # Without the date an unchanged figure is an unchanged file.
                figure.savefig(path, metadata={'Date': None} if suffix == 'svg' else None)
                files.append(path)
            plt.close(figure)
    return files


def _figures(study: Study, costs: dict) -> Iterator[tuple[str, Figure]]:
    curves = {e.name: points for e in study.experiments if (points := curve(e, study.unit))}
    if not curves:
        return
    over_steps = {n: [(p.step, p) for p in points] for n, points in curves.items()}
    yield f'ap_over_{study.unit}', _curves(study, over_steps, study.unit)
    if len(curves) > 1:
        yield f'each_over_{study.unit}', _multiples(study, over_steps, study.unit)

    timed = {
        n: [(p.seconds, p) for p in points if p.seconds is not None] for n, points in curves.items()
    }
    timed = {n: points for n, points in timed.items() if points}
    if timed:
        unit, length = time_unit(max(points[-1][0] for points in timed.values()))
        over_time = {n: [(s / length, p) for s, p in points] for n, points in timed.items()}
        yield 'ap_over_time', _curves(study, over_time, f'training time, {unit}')
        if len(over_time) > 1:
            yield 'each_over_time', _multiples(study, over_time, f'training time, {unit}')

    panels = _cost_panels(study, costs)
    if panels:
        yield 'ap_over_cost', _scatter(study, panels)


def _style(study: Study, name: str) -> dict:
    """The same for an experiment in every figure; where colours come again, the rest differs."""
    i = [experiment.name for experiment in study.experiments].index(name)
    lap = i // len(COLOURS)
    return dict(
        color=COLOURS[i % len(COLOURS)],
        marker=MARKERS[(i + lap) % len(MARKERS)],
        linestyle=LINES[lap % len(LINES)],
    )


def _label(study: Study, name: str) -> str:
    return name if study[name].finished else f'{name} (not finished)'


def _curves(
    study: Study, curves: Mapping[str, Sequence[tuple[float, Point]]], x_label: str
) -> Figure:
    figure, axes = plt.subplots(figsize=(9, 4.6), layout='constrained')
    # In the order of the curves' ends, so that the legend reads as the figure does.
    for name in sorted(curves, key=lambda n: -curves[n][-1][1].ap.mean):
        xs = [x for x, _ in curves[name]]
        points = [point for _, point in curves[name]]
        style = _style(study, name)
        axes.plot(
            xs,
            [100 * point.ap.mean for point in points],
            label=_label(study, name),
            linewidth=1.8,
            markersize=4.5,
            markevery=max(1, len(xs) // 12),
            **style,
        )
        lowest, highest = ([100 * getattr(p, end) for p in points] for end in ('lowest', 'highest'))
        axes.fill_between(xs, lowest, highest, color=style['color'], alpha=0.15, linewidth=0)
    axes.set(xlabel=x_label, ylabel='box AP, %')
    axes.set_xlim(0, 1.04 * axes.get_xlim()[1])
    axes.set_ylim(0, 1.04 * axes.get_ylim()[1])
    figure.legend(loc='outside right upper', fontsize=10, ncols=1 + len(curves) // 20)
    seeds = max(len(study[name].finished) for name in curves)
    if seeds > 1:
        axes.set_title(
            f'mean and range over up to {seeds} seeds', loc='left', fontsize=10, color='0.35'
        )
    return figure


def _multiples(
    study: Study, curves: Mapping[str, Sequence[tuple[float, Point]]], x_label: str
) -> Figure:
    """A panel for every experiment, in the order of their ends, with all others behind it."""
    names = sorted(curves, key=lambda n: -curves[n][-1][1].ap.mean)
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(0.6 + 2.5 * columns, 0.5 + 2.1 * rows), layout='constrained',
        sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    lines = {
        name: ([x for x, _ in points], [100 * point.ap.mean for _, point in points])
        for name, points in curves.items()
    }
    for axes in grid.flat[len(names) :]:
        axes.axis('off')
    for i, (axes, name) in enumerate(zip(grid.flat, names, strict=False)):
        for other in names:
            is_baseline = other == study.baseline
            axes.plot(
                *lines[other],
                color='0.35' if is_baseline else '0.82',
                linestyle='--' if is_baseline else '-',
                linewidth=1.2 if is_baseline else 0.9,
                zorder=2 if is_baseline else 1,
            )
        style = _style(study, name) | dict(linestyle='-', marker='')
        axes.plot(*lines[name], linewidth=2.2, zorder=4, **style)
        ends = ([100 * getattr(p, end) for _, p in curves[name]] for end in ('lowest', 'highest'))
        lowest, highest = ends
        axes.fill_between(
            lines[name][0], lowest, highest, color=style['color'], alpha=0.2, linewidth=0, zorder=3
        )
        axes.set_title(_label(study, name), loc='left', fontsize=9.5, color=style['color'])
        x, y = lines[name][0][-1], lines[name][1][-1]
        axes.annotate(f'{y:.1f}', (x, y), (-2, 4), textcoords='offset points', ha='right', size=9)
        if i >= len(names) - columns:
            axes.set_xlabel(x_label, fontsize=10)
            axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel('box AP, %', fontsize=10)
    grid[0][0].set_xlim(left=0)
    grid[0][0].set_ylim(0, 1.1 * max(100 * p.highest for ps in curves.values() for _, p in ps))
    figure.suptitle(
        f'mean and range over the seeds; dashed: {study.baseline}; grey: the others',
        x=0.01, ha='left', fontsize=10, color='0.35',
    )  # fmt: skip
    return figure


def _cost_panels(study: Study, costs: dict) -> dict[str, dict[str, float]]:
    """Costs of the experiments by name of the cost, those that are known."""
    finished = [e for e in study.experiments if e.finished]
    totals = {e.name: total.mean for e in finished if (total := total_seconds(e))}
    panels: dict[str, dict[str, float]] = {}
    if totals:
        unit, length = time_unit(max(totals.values()))
        panels[f'training time, {unit}'] = {n: s / length for n, s in totals.items()}
    for key, scale, label in (
        ('flops', 1e9, 'GFLOPs'),
        ('latency_ms', 1, 'latency, ms'),
        ('parameters', 1e6, 'parameters, M'),
    ):
        known = {
            e.name: costs['experiments'][e.name][key] / scale
            for e in finished
            if e.name in costs.get('experiments', {})
        }
        if known:
            panels[label] = known
    memory = {
        e.name: mib.mean / 1024
        for e in finished
        if (mib := value(run.log.peak_memory_mib for run in e.finished))
    }
    if memory:
        panels['training memory, GiB'] = memory
    return panels


def _scatter(study: Study, panels: dict[str, dict[str, float]]) -> Figure:
    columns = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(2.2 + 2.6 * columns, 3.4 * rows), layout='constrained',
        sharey=True, squeeze=False,
    )  # fmt: skip
    for axes in grid.flat[len(panels) :]:
        axes.axis('off')
    aps = {e.name: ap for e in study.experiments if (ap := final_metrics(e)['AP'])}
    for axes, (label, costs) in zip(grid.flat, panels.items(), strict=False):
        for name in sorted((n for n in costs if n in aps), key=lambda n: -aps[n].mean):
            ap = aps[name]
            style = _style(study, name) | dict(linestyle='')
            axes.errorbar(
                costs[name],
                100 * ap.mean,
                yerr=100 * ap.std if ap.std is not None else None,
                label=name,
                markersize=7,
                capsize=3,
                **style,
            )
        axes.set(xlabel=label)
        axes.locator_params(nbins=5)
        axes.set_xlim(0, 1.08 * max(costs.values()))
    # One scale for all panels.
    grid[0][0].set_ylim(0, 1.04 * grid[0][0].get_ylim()[1])
    for axes in grid[:, 0]:
        axes.set_ylabel('final box AP, %')
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right upper', fontsize=10)
    return figure
