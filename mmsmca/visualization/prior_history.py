"""How centres, offsets and scales of the spatial priors move while a detector is trained."""

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from matplotlib.typing import ColorType
from torch import Tensor

from mmsmca.models.layers.decoder import SMCADecoderLayer

from .inspection import Inspection
from .panels import figure_image, new_figure

# Of a statistic over queries and heads: what most of them are between, and the median.
QUANTILES = (0.1, 0.5, 0.9)
AXES = ('x', 'y', 'xy')


def measure(inspection: Inspection) -> dict[str, Tensor]:
    """Measure the priors of all queries on one image.

    Args:
        inspection: What a detector with a spatial prior did with the image.

    Returns:
        ``centers`` of the queries, (x, y) in [0, 1] of the image, (Q, 2); of the decoder layers and
        levels the :data:`QUANTILES` over queries and heads of ``scales``, |s|, (layers, levels, 2
        or 3, quantiles), and of ``offsets``, lengths in cells, (layers, levels, quantiles).
    """
    layers = [layer for layer in inspection.layers if isinstance(layer, SMCADecoderLayer)]
    scales, offsets = [], []
    for layer in layers:
        placed = inspection.calls[layer].arguments
        centers = placed['centers'][0] * placed['image_sizes'][0]
        priors = inspection.calls[layer.cross_attn].arguments['priors']
        strides = layer.spatial_prior.strides
        scales.append(torch.stack([quantiles(prior.scales[0].abs()) for prior in priors]))
        offsets.append(
            torch.stack(
                [
                    quantiles((prior.centers[0] - centers / stride).norm(dim=-1, keepdim=True))[0]
                    for prior, stride in zip(priors, strides, strict=True)
                ]
            )
        )
    centers = inspection.calls[layers[0]].arguments['centers'][0]
    return dict(
        centers=centers.cpu(), scales=torch.stack(scales).cpu(), offsets=torch.stack(offsets).cpu()
    )


def scalars(measured: dict[str, Tensor]) -> dict[str, float]:
    """Medians of what was measured, by names for a curve each.

    Args:
        measured: What :func:`measure` returned.

    Returns:
        ``spatial_prior/layer_0/level_0/scale_x``, ``.../scale_y``, ``.../offset`` and so on, and
        ``spatial_prior/center_spread``: root mean squared distance of the centres from their mean,
        in parts of the image's sides.
    """
    spread = measured['centers'].var(dim=0, correction=0).sum().sqrt()
    values = {'spatial_prior/center_spread': float(spread)}
    median = QUANTILES.index(0.5)
    layers, levels, axes, _ = measured['scales'].shape
    for layer in range(layers):
        for level in range(levels):
            name = f'spatial_prior/layer_{layer}/level_{level}'
            for axis in range(axes):
                scale = measured['scales'][layer, level, axis, median]
                values[f'{name}/scale_{AXES[axis]}'] = float(scale)
            values[f'{name}/offset'] = float(measured['offsets'][layer, level, median])
    return values


def history_image(history: dict[str, Tensor], image: np.ndarray) -> np.ndarray:
    """Draw the ways of the centres over an image, and curves of scales and offsets.

    Args:
        history: ``iterations``, (T,), and what :func:`measure` returned, stacked: (T, ...).
        image: RGB, (height, width, 3).

    Returns:
        The picture, RGB, 900 pixels wide.
    """
    iterations = history['iterations'].numpy()
    _, layers, levels, axes, _ = history['scales'].shape
    figure, left, right = history_figure(max(2.2 * levels, 3.4), iterations[-1], 0.36)
    _draw_ways(left.subplots(), history['centers'].numpy(), image)

    panels = right.subplots(levels, 2, squeeze=False, sharex=True)
    for level, (scales, offsets) in enumerate(panels):
        for layer in range(layers):
            color = colormaps['viridis'](layer / layers)
            for axis in range(axes):
                values = history['scales'][:, layer, level, axis]
                draw_quantiles(scales, iterations, values, color, ('-', '--', ':')[axis])
            draw_quantiles(offsets, iterations, history['offsets'][:, layer, level], color, '-')
        name = f'level {level}: ' if levels > 1 else ''
        finish_panel(scales, f'{name}scales |s|')
        finish_panel(offsets, f'{name}offsets, in cells')
    for panel in panels[-1]:
        panel.set_xlabel('iteration', fontsize=7)
    lines = [
        Line2D([], [], color=colormaps['viridis'](layer / layers), label=f'layer {layer}')
        for layer in range(layers)
    ]
    lines += [
        Line2D([], [], color='0.3', linestyle=('-', '--', ':')[axis], label=f's_{AXES[axis]}')
        for axis in range(axes)
    ]
    right.legend(
        handles=lines,
        loc='outside lower center',
        ncols=min(len(lines), 8),
        fontsize=7,
        title='lines: median over queries and heads; bands: 10 to 90 %',
        title_fontsize=7,
    )
    return figure_image(figure)


def history_figure(
    height: float, iteration: int, left_share: float
) -> tuple[Figure, SubFigure, SubFigure]:
    """A figure with a title, a part for the image on its left and one for curves on its right.

    Args:
        height: In inches.
        iteration: The last one.
        left_share: Of the width that the left part has.
    """
    figure = new_figure(height)
    figure.suptitle(f'Spatial priors over training, to iteration {iteration}', size=11)
    ratios = [left_share, 1 - left_share]
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=ratios)[0]
    return figure, left, right


def finish_panel(panel: Axes, title: str) -> None:
    """Title and scale of a panel of curves that begins at zero."""
    panel.set_title(title, fontsize=8)
    panel.set_ylim(bottom=0)
    panel.tick_params(labelsize=7)
    panel.grid(alpha=0.3)


def quantiles(values: Tensor) -> Tensor:
    """The :data:`QUANTILES` of (M, Q, n) over heads and queries: (n, quantiles)."""
    return values.flatten(0, 1).quantile(values.new_tensor(QUANTILES), dim=0).T


def _draw_ways(axes: Axes, centers: np.ndarray, image: np.ndarray) -> None:
    """Where each query's centre has been, (T, Q, 2), light at first, and where it is."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation='bicubic', alpha=0.6)
    ways = centers * (width, height)
    for way in ways.transpose(1, 0, 2):
        steps = np.stack((way[:-1], way[1:]), axis=1)
        colors = colormaps['Greys'](np.linspace(0.2, 0.9, len(steps)))
        axes.add_collection(LineCollection(list(steps), colors=colors, linewidths=0.8))
    axes.plot(*ways[0].T, 'o', markersize=3, color='white', markeredgecolor='k', label='at first')
    axes.plot(*ways[-1].T, 'o', markersize=4, color='C3', markeredgecolor='k', label='now')
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title("ways of the queries' centres", fontsize=8)
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=7)


def draw_quantiles(
    axes: Axes, iterations: np.ndarray, values: Tensor, color: ColorType, linestyle: str
) -> None:
    """Draw a median and the band around it, (T, quantiles), over the iterations."""
    low, median, high = values.T.numpy()
    axes.plot(iterations, median, color=color, linestyle=linestyle, linewidth=1.2)
    axes.fill_between(iterations, low, high, color=color, alpha=0.12, linewidth=0)
