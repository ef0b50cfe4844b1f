"""Figures: AP over training length and training time, and against costs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib
import numpy as np

matplotlib.use('agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402

from .results import Report  # noqa: E402
from .statistics import Numbers, Point  # noqa: E402
from .tables import time_unit  # noqa: E402

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

# Okabe and Ito's colour-blind-safe palette, without the yellow, which is too faint on white.
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
# By experiment, (4, evaluations): x, and mean, lowest and highest AP in percent.
Curves = Mapping[str, np.ndarray]


def write_figures(report: Report, numbers: Sequence[Numbers], folder: Path) -> list[Path]:
    """Draw all figures that have data, as PNG and SVG.

    Args:
        report: The report.
        numbers: Numbers of the report's experiments.
        folder: Folder to write to.

    Returns:
        Paths of the files.
    """
    files = []
    with plt.rc_context(STYLE):
        for name, figure in Figures(report, numbers).all():
            for suffix in FORMATS:
                path = folder / f'{name}.{suffix}'
                # Without the date, an unchanged figure gives an unchanged file.
                figure.savefig(path, metadata={'Date': None} if suffix == 'svg' else None)
                files.append(path)
            plt.close(figure)
    return files


class Figures:
    """Figures of a report, with the same style for an experiment in all of them.

    Args:
        report: The report.
        numbers: Numbers of the report's experiments.
    """

    def __init__(self, report: Report, numbers: Sequence[Numbers]) -> None:
        self.report = report
        self.numbers = {of.name: of for of in numbers}
        seeds = [run.seed for run in report.runs if run.final]
        self.spread = 'mean and range over the seeds' if len(set(seeds)) > 1 else 'one seed'

    def all(self) -> Iterator[tuple[str, Figure]]:
        """Yield the name and the figure of everything that has data."""
        over: list[tuple[str, str, Curves]] = []
        known = {name: of.curve for name, of in self.numbers.items() if of.curve}
        if known:
            unit = self.report.unit
            over.append((unit, unit, {n: _curve(ps, 'step') for n, ps in known.items()}))
        known = {n: ps for n, ps in known.items() if all(p.seconds is not None for p in ps)}
        if known:
            unit, length = time_unit(max(ps[-1].seconds or 0 for ps in known.values()))
            timed = {n: _curve(ps, 'seconds', length) for n, ps in known.items()}
            over.append(('time', f'training time, {unit}', timed))
        for name, x_label, curves in over:
            yield f'ap_over_{name}', self._curves(curves, x_label)
            if len(curves) > 1:
                yield f'each_over_{name}', self._multiples(curves, x_label)
        if panels := self.cost_panels():
            yield 'ap_over_cost', self._scatter(panels)

    def style(self, name: str) -> dict[str, Any]:
        """Style of an experiment; where colours repeat, marker and line differ."""
        i = list(self.numbers).index(name)
        lap = i // len(COLOURS)
        return dict(
            color=COLOURS[i % len(COLOURS)],
            marker=MARKERS[(i + lap) % len(MARKERS)],
            linestyle=LINES[lap % len(LINES)],
        )

    def _label(self, name: str) -> str:
        return name if self.numbers[name].seeds else f'{name} (not finished)'

    def _range(self, axes: Axes, name: str, curve: np.ndarray) -> None:
        color = self.style(name)['color']
        axes.fill_between(curve[0], *curve[2:], color=color, alpha=0.15, linewidth=0, zorder=3)

    def _curves(self, curves: Curves, x_label: str) -> Figure:
        figure, axes = plt.subplots(figsize=(9, 4.6), layout='constrained')
        for name in _by_end(curves):
            axes.plot(
                *curves[name][:2],
                label=self._label(name),
                linewidth=1.8,
                markersize=4.5,
                markevery=max(1, curves[name].shape[1] // 12),
                **self.style(name),
            )
            self._range(axes, name, curves[name])
        axes.set(xlabel=x_label, ylabel='box AP, %')
        axes.set_xlim(0, 1.04 * axes.get_xlim()[1])
        axes.set_ylim(0, 1.04 * axes.get_ylim()[1])
        figure.legend(loc='outside right upper', fontsize=10, ncols=1 + len(curves) // 20)
        axes.set_title(self.spread, loc='left', fontsize=10, color='0.35')
        return figure

    def _multiples(self, curves: Curves, x_label: str) -> Figure:
        """One panel per experiment, sorted by final AP, with all others in the background."""
        names = _by_end(curves)
        figure, grid = _grid(len(names), min(4, len(names)), (2.5, 2.1), (0.6, 0.5), sharex=True)
        columns = grid.shape[1]
        for i, (axes, name) in enumerate(zip(grid.flat, names, strict=False)):
            for other in names:
                is_baseline = other == self.report.baseline
                axes.plot(
                    *curves[other][:2],
                    color='0.35' if is_baseline else '0.82',
                    linestyle='--' if is_baseline else '-',
                    linewidth=1.2 if is_baseline else 0.9,
                    zorder=2 if is_baseline else 1,
                )
            style = self.style(name) | dict(linestyle='-', marker='')
            xs, ys = curves[name][:2]
            axes.plot(xs, ys, linewidth=2.2, zorder=4, **style)
            self._range(axes, name, curves[name])
            axes.set_title(self._label(name), loc='left', fontsize=9.5, color=style['color'])
            axes.annotate(
                f'{ys[-1]:.1f}', (xs[-1], ys[-1]), (-2, 4), textcoords='offset points', ha='right',
                size=9,
            )  # fmt: skip
            if i >= len(names) - columns:
                axes.set_xlabel(x_label, fontsize=10)
                axes.tick_params(labelbottom=True)
        for axes in grid[:, 0]:
            axes.set_ylabel('box AP, %', fontsize=10)
        grid[0][0].set_xlim(left=0)
        grid[0][0].set_ylim(0, 1.1 * max(highest.max() for *_, highest in curves.values()))
        figure.suptitle(
            f'{self.spread}; dashed: {self.report.baseline}; grey: the others',
            x=0.01, ha='left', fontsize=10, color='0.35',
        )  # fmt: skip
        return figure

    def cost_panels(self) -> dict[str, dict[str, float]]:
        """Known costs of the finished experiments, by name of the cost."""
        finished = [of for of in self.numbers.values() if of.ap is not None]
        totals = [of.total_seconds.mean for of in finished if of.total_seconds]
        unit, length = time_unit(max(totals, default=0))
        # The idle machine's: a training beside others has no time of its own.
        calibrated = self.report.calibration.get('experiments', {})
        panels = {
            f'training time, {unit}': {
                of.name: of.total_seconds.mean / length for of in finished if of.total_seconds
            },
            'ms per iteration': {
                of.name: 1e3 * calibrated[of.name]['seconds']
                for of in finished
                if of.name in calibrated
            },
        }
        for key, scale, label in (
            ('flops', 1e9, 'GFLOPs'),
            ('latency_ms', 1, 'latency, ms'),
            ('parameters', 1e6, 'parameters, M'),
            ('peak_memory_mib', 1024, 'training memory, GiB'),
        ):
            panels[label] = {of.name: x / scale for of in finished if (x := getattr(of, key))}
        return {label: known for label, known in panels.items() if known}

    def _scatter(self, panels: dict[str, dict[str, float]]) -> Figure:
        columns = 2 if len(panels) == 4 else min(3, len(panels))
        figure, grid = _grid(len(panels), columns, (2.6, 3.4), (2.2, 0))
        aps = {n: of.final['AP'] for n, of in self.numbers.items() if of.final['AP']}
        for axes, (label, costs) in zip(grid.flat, panels.items(), strict=False):
            for name in sorted(costs, key=lambda n: -aps[n].mean):
                deviation = aps[name].std
                axes.errorbar(
                    costs[name],
                    100 * aps[name].mean,
                    yerr=None if deviation is None else 100 * deviation,
                    label=name,
                    markersize=7,
                    capsize=3,
                    **self.style(name) | dict(linestyle=''),
                )
            axes.set(xlabel=label)
            axes.locator_params(nbins=5)
            axes.set_xlim(0, 1.08 * max(costs.values()))
        # One scale for all panels.
        grid[0][0].set_ylim(0, 1.04 * grid[0][0].get_ylim()[1])
        for axes in grid[:, 0]:
            axes.set_ylabel('final box AP, %')
        # A panel lacks experiments whose cost is unknown.
        drawn = {
            label: handle
            for axes in grid.flat
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        names = sorted(drawn, key=lambda n: -aps[n].mean)
        # Above the names, where it has room beside one narrow panel too.
        deviates = any(ap.std is not None for ap in aps.values())
        figure.legend(
            [drawn[n] for n in names], names, loc='outside right upper', fontsize=10,
            alignment='left',
            title='bars: one standard\ndeviation over the seeds' if deviates else None,
            title_fontsize=10,
        )  # fmt: skip
        return figure


def _grid(
    panels: int,
    columns: int,
    size: tuple[float, float],
    margin: tuple[float, float],
    sharex: bool = False,
) -> tuple[Figure, Any]:
    """Figure with a grid of panels, each of a size in inches, that share the AP axis."""
    rows = math.ceil(panels / columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(margin[0] + size[0] * columns, margin[1] + size[1] * rows),
        layout='constrained', sharex=sharex, sharey=True, squeeze=False,
    )  # fmt: skip
    for axes in grid.flat[panels:]:
        axes.axis('off')
    return figure, grid


def _curve(points: Sequence[Point], x: str, unit: float = 1) -> np.ndarray:
    """Array of :data:`Curves` over one attribute of the points."""
    return np.array(
        [(getattr(p, x) / unit, 100 * p.AP, 100 * p.lowest, 100 * p.highest) for p in points]
    ).T


def _by_end(curves: Curves) -> list[str]:
    """Names sorted by final AP, so that the legend has the same order as the curves' ends."""
    return sorted(curves, key=lambda name: -curves[name][1, -1])
