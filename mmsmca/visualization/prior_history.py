"""History of the spatial priors, and of their centres or boxes, over training."""

from typing import Literal

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from mmdet.structures.bbox import bbox_overlaps
from torch import Tensor

from .image_frame import show_image
from .inspection import Inspection
from .panels import draw_box, draw_legend, figure_image, new_figure

# A curve shows the median over queries and heads, its band the outer quantiles.
QUANTILES = (0.1, 0.5, 0.9)
AXES = ('x', 'y', 'xy')
LINES: tuple[Literal['-', '--', ':', '-.'], ...] = ('-', '--', ':', '-.')
# Number of queries whose boxes are kept, and of those whose boxes are drawn.
KEPT, DRAWN = 10, 3
TITLES = {
    'scale': 'scales |s|',
    'deviation': 'standard deviations in boxes (x -, y - -)',
    'offset': 'offsets, in {unit}',
    'overlap': 'IoU with the predicted box',
    'weight': 'weights of the levels by the gates',
}


def measure(inspection: Inspection) -> dict[str, Tensor]:
    """Measure the priors of all queries on one image.

    Args:
        inspection: Inspection of the image by a detector with a spatial prior.

    Returns:
        Curves by name, each with its :data:`QUANTILES` over queries and heads, (3,):
        ``layer_0/level_0/scale_x`` and ``.../offset``, in cells. For priors tied to boxes:
        ``layer_0/deviation_x`` and ``.../offset``, in box sizes; ``.../overlap``, the IoU between
        the box that the layer attends around and the predicted box; and ``.../level_0/weight``,
        (1,), the mean of ``level_weights`` in :class:`.Gaussians`.

        Also ``centers`` of the queries, (Q, 2), or ``boxes`` of the ten queries with the highest
        scores, best first, (layers + 1, 10, 4): those that each layer attends around, then the
        predicted ones. Both are in [0, 1] of the image.
    """
    measured, boxes = {}, []
    size = torch.tensor(inspection.input_size)
    num_levels = max(len(layer.spatial_prior.strides) for layer in inspection.layers)
    predicted = inspection.boxes * (inspection.scale_factor / size).repeat(2).to(inspection.boxes)
    for number in range(len(inspection.layers)):
        prior, layer = inspection.gaussians(number), f'layer_{number}'
        for level, (widths, offsets) in enumerate(zip(prior.widths, prior.offsets, strict=True)):
            name, width = f'{layer}/level_{level}', 'scale'
            if prior.boxes is not None:
                name, width = layer, 'deviation'
            for axis, values in zip(AXES, widths.abs().unbind(-1), strict=False):
                measured[f'{name}/{width}_{axis}'] = _quantiles(values)
            measured[f'{name}/offset'] = _quantiles(offsets.norm(dim=-1))
        if prior.boxes is None or prior.level_weights is None:
            measured['centers'] = prior.centers / size
            continue
        boxes.append(prior.boxes / size.repeat(2))
        overlaps = bbox_overlaps(boxes[-1], predicted, is_aligned=True)
        measured[f'{layer}/overlap'] = _quantiles(overlaps)
        # A layer may leave out the finest levels.
        weights = prior.level_weights.flatten(0, 1).mean(0)
        for level, weight in enumerate(weights, start=num_levels - len(weights)):
            measured[f'{layer}/level_{level}/weight'] = weight[None]
    if boxes:
        best = inspection.best_queries(KEPT)
        measured['boxes'] = torch.stack([*boxes, predicted])[:, best]
    return measured


def scalars(measured: dict[str, Tensor]) -> dict[str, float]:
    """Medians of the curves of :func:`measure`, with the prefix ``spatial_prior/`` in their names.

    For centres, there is ``center_spread``: their root mean square distance from their mean, as a
    fraction of the image's sides.
    """
    values = {
        f'spatial_prior/{name}': float(curve[len(curve) // 2])
        for name, curve in measured.items()
        if name.startswith('layer_')
    }
    if 'centers' in measured:
        spread = measured['centers'].var(dim=0, correction=0).sum().sqrt()
        values['spatial_prior/center_spread'] = float(spread)
    return values


def history_image(history: dict[str, Tensor], image: np.ndarray) -> np.ndarray:
    """Draw centres or boxes over an image, and curves of the priors.

    Args:
        history: ``iterations``, (T,), and the results of :func:`measure`, stacked, (T, ...).
        image: RGB, (height, width, 3).

    Returns:
        RGB picture, 900 pixels wide.
    """
    curves = {name: _parse(name) for name in history if name.startswith('layer_')}
    panels = list(dict.fromkeys(panel for panel, _, _ in curves.values()))
    layers = 1 + max(layer for _, layer, _ in curves.values())
    colors = colormaps['viridis'](np.arange(layers) / layers)
    figure = new_figure(max(1.1 * len(panels), 3.4))
    iterations = history['iterations'].numpy()
    figure.suptitle(f'Spatial priors over training, to iteration {iterations[-1]}', size=11)
    left, right = figure.subfigures(1, 2, squeeze=False, width_ratios=(0.38, 0.62))[0]
    if 'boxes' in history:
        _draw_boxes(left.subplots(), history['boxes'][-1], image, colors)
    else:
        _draw_paths(left.subplots(), history['centers'].numpy(), image)

    grid = right.subplots(len(panels) // 2, 2, squeeze=False, sharex=True)
    by_panel = dict(zip(panels, grid.flatten(), strict=True))
    for name, (panel, layer, line) in curves.items():
        values = history[name].T.numpy()
        axes, color = by_panel[panel], colors[layer]
        median = values[len(values) // 2]
        axes.plot(iterations, median, color=color, linestyle=LINES[line % 4], linewidth=1.2)
        axes.fill_between(iterations, values[0], values[-1], color=color, alpha=0.12, linewidth=0)
    unit = 'boxes' if 'boxes' in history else 'cells'
    for (level, quantity), axes in by_panel.items():
        prefix = level.replace('_', ' ') + ': ' if level and len(panels) > 2 else ''
        axes.set_title(prefix + TITLES[quantity].format(unit=unit), fontsize=8)
        axes.set_ylim(0, 1 if quantity in ('overlap', 'weight') else None)
        axes.tick_params(labelsize=7)
        axes.grid(alpha=0.3)
    for axes in grid[-1]:
        axes.set_xlabel('iteration', fontsize=7)
    lines = 1 + max(line for _, _, line in curves.values())
    labels = [f's_{axis}' for axis in AXES]
    note = 'lines: median over queries and heads; bands: 10 to 90 %'
    if 'boxes' in history:
        labels = [f'level {level}' for level in range(lines)]
        note += '; weights: mean'
    handles = [dict(color=color, label=f'layer {i}') for i, color in enumerate(colors)]
    handles += [
        dict(color='0.3', linestyle=LINES[line % 4], label=labels[line]) for line in range(lines)
    ]
    draw_legend(right, handles, note, columns=6)
    return figure_image(figure)


def _quantiles(values: Tensor) -> Tensor:
    return values.flatten().quantile(values.new_tensor(QUANTILES))


def _parse(name: str) -> tuple[tuple[str, str], int, int]:
    """Panel of a curve (level, if there is one, and quantity), layer and line style."""
    layer, *level, curve = name.split('/')
    quantity, _, axis = curve.partition('_')
    number = int(layer.removeprefix('layer_'))
    if quantity == 'weight':
        return ('', quantity), number, int(level[0].removeprefix('level_'))
    return (level[0] if level else '', quantity), number, AXES.index(axis) if axis else 0


def _draw_paths(axes: Axes, centers: np.ndarray, image: np.ndarray) -> None:
    """Draw the path of each query's centre, (T, Q, 2), from light to dark, and its ends."""
    show_image(axes, image, alpha=0.6)
    paths = centers * image.shape[1::-1]
    for path in paths.transpose(1, 0, 2):
        steps = np.stack((path[:-1], path[1:]), axis=1)
        colors = colormaps['Greys'](np.linspace(0.2, 0.9, len(steps)))
        axes.add_collection(LineCollection(list(steps), colors=colors, linewidths=0.8))
    axes.plot(*paths[0].T, 'o', markersize=3, color='white', markeredgecolor='k', label='start')
    axes.plot(*paths[-1].T, 'o', markersize=4, color='C3', markeredgecolor='k', label='now')
    axes.set_title("paths of the queries' centres", fontsize=8)
    axes.legend(loc='upper center', bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=7)


def _draw_boxes(axes: Axes, boxes: Tensor, image: np.ndarray, colors: np.ndarray) -> None:
    """Draw the boxes that layers attend around, and the predicted ones, (layers + 1, Q, 4)."""
    show_image(axes, image, alpha=0.6)
    pixels = boxes[:, :DRAWN] * torch.tensor(image.shape[1::-1]).repeat(2)
    labels = [f'layer {layer} looks around' for layer in range(len(colors))]
    handles = []
    for of_layer, color, label in zip(pixels, [*colors, 'C3'], [*labels, 'predicted'], strict=True):
        handles.append(Line2D([], [], color=color, label=label))
        for box in of_layer:
            draw_box(axes, box, color, linewidth=1.5)
    axes.set_title(f'boxes of the {pixels.size(1)} best queries, now', fontsize=8)
    axes.legend(
        handles=handles, loc='upper center', bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=7
    )
