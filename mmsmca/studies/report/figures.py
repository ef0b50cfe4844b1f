"""Figures: AP over training length and training time."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd

matplotlib.use('agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from .results import Report  # noqa: E402
from .statistics import Numbers  # noqa: E402
from .tables import time_unit  # noqa: E402

# Okabe and Ito's colour-blind-safe palette, without the yellow, which is too faint on white.
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#56B4E9', '#E69F00', '#000000')
FORMATS = ('png', 'svg')
STYLE: dict[Any, Any] = {
    'font.size': 11,
    'axes.grid': True,
    'axes.axisbelow': True,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'grid.alpha': 0.3,
    'svg.hashsalt': 'mmsmca',
    'savefig.dpi': 130,
}


def write_figures(report: Report, numbers: Sequence[Numbers], folder: Path) -> list[Path]:
    """Draw all figures that have data into a folder, as PNG and SVG; return their paths."""
    files = []
    with plt.rc_context(STYLE):
        for name, figure in figures(report, numbers):
            for suffix in FORMATS:
                path = folder / f'{name}.{suffix}'
                # Without the date, an unchanged figure gives an unchanged file.
                figure.savefig(path, metadata={'Date': None} if suffix == 'svg' else None)
                files.append(path)
            plt.close(figure)
    return files


def figures(report: Report, numbers: Sequence[Numbers]) -> Iterator[tuple[str, Figure]]:
    """Yield the name and the figure of everything that has data."""
    curves = {of.name: of.curve for of in numbers if len(of.curve)}
    labels = {of.name: of.name if of.seeds else f'{of.name} (not finished)' for of in numbers}
    if curves:
        unit = report.unit
        by_step = {name: curve.assign(x=curve.step) for name, curve in curves.items()}
        yield f'ap_over_{unit}', _panels(by_step, unit, report, labels)
    timed = {name: curve for name, curve in curves.items() if curve.seconds.notna().all()}
    if timed:
        unit, length = time_unit(max(curve.seconds.iloc[-1] for curve in timed.values()))
        by_time = {name: curve.assign(x=curve.seconds / length) for name, curve in timed.items()}
        yield 'ap_over_time', _panels(by_time, f'training time, {unit}', report, labels)


def _panels(
    curves: Mapping[str, pd.DataFrame], x_label: str, report: Report, labels: Mapping[str, str]
) -> Figure:
    """One panel per experiment, sorted by final AP, with all others in the background."""
    names = sorted(curves, key=lambda name: -curves[name].AP.iloc[-1])
    columns = min(4, len(names))
    rows = math.ceil(len(names) / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(0.6 + 2.5 * columns, 0.5 + 2.1 * rows),
        layout='constrained', sharex=True, sharey=True, squeeze=False,
    )  # fmt: skip
    for axes in grid.flat[len(names) :]:
        axes.axis('off')
    for i, (axes, name) in enumerate(zip(grid.flat, names, strict=False)):
        for other in names:
            line = dict(color='0.82', linewidth=0.9, zorder=1)
            if other == report.baseline:
                line = dict(color='0.35', linewidth=1.2, zorder=2, linestyle='--')
            axes.plot(curves[other].x, 100 * curves[other].AP, **line)
        curve = curves[name]
        color = COLOURS[report.experiments.index(name) % len(COLOURS)]
        axes.plot(curve.x, 100 * curve.AP, linewidth=2.2, zorder=4, color=color)
        axes.fill_between(
            curve.x, 100 * curve.lowest, 100 * curve.highest,
            color=color, alpha=0.15, linewidth=0, zorder=3,
        )  # fmt: skip
        axes.set_title(labels[name], loc='left', fontsize=9.5, color=color)
        last = curve.iloc[-1]
        axes.annotate(
            f'{100 * last.AP:.1f}', (last.x, 100 * last.AP), (-2, 4), textcoords='offset points',
            ha='right', size=9,
        )  # fmt: skip
        if i >= len(names) - columns:
            axes.set_xlabel(x_label, fontsize=10)
            axes.tick_params(labelbottom=True)
    for axes in grid[:, 0]:
        axes.set_ylabel('box AP, %', fontsize=10)
    grid[0][0].set_xlim(left=0)
    grid[0][0].set_ylim(0, 110 * max(curve.highest.max() for curve in curves.values()))
    seeds = report.runs.seed[report.runs.AP.notna()].nunique()
    spread = 'mean and range over the seeds' if seeds > 1 else 'one seed'
    figure.suptitle(
        f'{spread}; dashed: {report.baseline}; grey: the others',
        x=0.01, ha='left', fontsize=10, color='0.35',
    )  # fmt: skip
    return figure
