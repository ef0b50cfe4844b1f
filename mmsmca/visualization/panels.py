"""Parts that all figures share: size, colours, scales, boxes, legends and saving."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.typing import ColorType
from torch import Tensor

WIDTH = 9.0  # inches: 900 pixels in a README at 100 dpi, where font size 7 is 10 pixels high
DPI = 140


def transparent_colors(name: str) -> ListedColormap:
    """A colormap that is more transparent the lower the value."""
    colors = colormaps[name](np.linspace(0.25, 1, 256))
    colors[:, 3] = np.linspace(0, 0.9, 256)
    return ListedColormap(colors)


BLUE = transparent_colors('Blues')
RED = transparent_colors('YlOrRd')


def new_figure(height: float) -> Figure:
    """An empty figure as wide as a README, with the given height in inches."""
    return Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(h_pad=0.07))


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and as SVG.

    Args:
        figure: The figure.
        path: Target path; its suffix is replaced.

    Returns:
        The files written.
    """
    paths = [path.with_suffix(suffix) for suffix in ('.png', '.svg')]
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in paths:
        figure.savefig(file, dpi=DPI, metadata={'Date': None} if file.suffix == '.svg' else None)
    return paths


def figure_image(figure: Figure) -> np.ndarray:
    """Render a figure as an RGB picture at 100 dpi."""
    figure.set_dpi(100)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.array(canvas.buffer_rgba())[..., :3]


def attention_norm(rasters: Sequence[np.ndarray]) -> PowerNorm:
    """One scale for all rasters; the square root keeps small weights visible beside large ones."""
    return PowerNorm(0.5, vmin=0, vmax=max(float(raster.max()) for raster in rasters))


def color_bar(
    figure: Figure | SubFigure, label: str, norm: Normalize, colors: ListedColormap, **place
) -> None:
    """Draw a colour bar with evenly spaced ticks, even if the scale is not linear."""
    ticks = norm.inverse(np.linspace(0, 1, 5))
    bar = figure.colorbar(ScalarMappable(norm, colors), ticks=ticks, **place)
    bar.set_ticklabels([f'{tick:.2g}' for tick in ticks])
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=7)


def draw_box(
    axes: Axes,
    box: Tensor | np.ndarray,
    color: ColorType,
    linestyle: str = '-',
    linewidth: float = 1,
) -> None:
    """Draw a box (x1, y1, x2, y2) in pixels of the image."""
    x1, y1, x2, y2 = box.tolist()
    axes.add_patch(
        Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, ec=color, lw=linewidth, ls=linestyle)
    )


def draw_legend(
    figure: Figure | SubFigure, lines: Sequence[dict], title: str, columns: int, **more
) -> None:
    """Draw a legend below a figure, with ``lines`` as arguments of ``Line2D``."""
    figure.legend(
        handles=[Line2D([], [], **line) for line in lines],
        loc='outside lower center',
        ncols=min(len(lines), columns),
        fontsize=7,
        title=title,
        title_fontsize=7,
        **more,
    )
