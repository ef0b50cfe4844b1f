"""How boxes, and the spatial priors tied to them, change while a detector is trained."""

from typing import Literal

import numpy as np
import torch
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.typing import ColorType
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from torch import Tensor
from torch.nn.functional import pad

from mmsmca.models.layers.dino_decoder import SMCADINODecoderLayer

from .inspection import Inspection
from .panels import draw_box, figure_image
from .prior_history import (
    QUANTILES,
    draw_quantiles,
    finish_panel,
    history_figure,
    quantiles,
)

# Queries whose boxes are kept, and of those, how many are drawn.
KEPT, DRAWN = 10, 3
LINES: tuple[Literal['-', '--', '-.', ':'], ...] = ('-', '--', '-.', ':')


def measure(inspection: Inspection) -> dict[str, Tensor]:
    """Measure boxes and priors of all queries on one image.

    Args:
        inspection: What a detector with priors tied to boxes did with the image.

    Returns:
        ``boxes`` of the ten queries of the highest scores (or of all, if there are fewer), best
        first: those that each layer looks around, then the predicted one, (x1, y1, x2, y2) in
        [0, 1] of the image, (layers + 1, 10, 4). Of the decoder layers the :data:`QUANTILES` over
        queries and heads of ``deviations``, the standard deviations in boxes, (layers, 2,
        quantiles), and of ``offsets``, lengths in boxes, (layers, quantiles), those over queries of
        ``overlaps``, the IoU of the box that the layer looks around and the predicted one, (layers,
        quantiles), and the means of ``level_weights``, (layers, levels): what the gates give to the
        levels, for a Gaussian that is wide beside their cells.
    """
    layers = [layer for layer in inspection.layers if isinstance(layer, SMCADINODecoderLayer)]
    size = torch.tensor(inspection.input_size).repeat(2) / inspection.scale_factor.repeat(2)
    predicted = inspection.boxes / size.to(inspection.boxes)
    # Layers may leave out the finest levels.
    num_levels = max(len(layer.spatial_prior.strides) for layer in layers)
    boxes, deviations, offsets, overlaps, level_weights = [], [], [], [], []
    for layer in layers:
        placed = inspection.calls[layer].arguments
        prior = inspection.calls[layer.cross_attn].arguments['prior']
        strides = layer.spatial_prior.strides
        cells = placed['boxes'][0] * (placed['image_sizes'][0] / strides[0]).repeat(2)
        centers, sides = cells.split(2, dim=-1)
        offsets.append(quantiles(((prior.centers[0] - centers) / sides).norm(dim=-1, keepdim=True)))
        deviations.append(quantiles((0.5 / prior.precisions[0]).sqrt() / sides))
        cells_of_level = 2 * torch.tensor(strides).log().to(prior.gates)
        weights = (prior.gates[0] - cells_of_level).softmax(-1).mean(dim=(0, 1))
        level_weights.append(pad(weights, (num_levels - len(weights), 0)))
        around = bbox_cxcywh_to_xyxy(placed['boxes'][0]).cpu()
        overlaps.append(quantiles(bbox_overlaps(around, predicted, is_aligned=True)[None, :, None]))
        boxes.append(around)
    best = inspection.best_queries(KEPT)
    measured = dict(
        boxes=torch.stack([*boxes, predicted])[:, best],
        deviations=torch.stack(deviations),
        offsets=torch.cat(offsets),
        overlaps=torch.cat(overlaps),
        level_weights=torch.stack(level_weights),
    )
    return {name: value.cpu() for name, value in measured.items()}


def scalars(measured: dict[str, Tensor]) -> dict[str, float]:
    """Medians of what was measured, by names for a curve each.

    Args:
        measured: What :func:`measure` returned.

    Returns:
        ``spatial_prior/layer_0/deviation_x``, ``.../deviation_y``, ``.../offset``,
        ``.../overlap``, and ``.../level_0/weight``, a mean, and so on.
    """
    values = {}
    median = QUANTILES.index(0.5)
    for layer, level_weights in enumerate(measured['level_weights']):
        name = f'spatial_prior/layer_{layer}'
        for axis, deviation in zip('xy', measured['deviations'][layer], strict=True):
            values[f'{name}/deviation_{axis}'] = float(deviation[median])
        values[f'{name}/offset'] = float(measured['offsets'][layer, median])
        values[f'{name}/overlap'] = float(measured['overlaps'][layer, median])
        for level, weight in enumerate(level_weights):
            values[f'{name}/level_{level}/weight'] = float(weight)
    return values


def history_image(history: dict[str, Tensor], image: np.ndarray) -> np.ndarray:
    """Draw the boxes from layer to layer over an image, and curves of the priors.

    Args:
        history: ``iterations``, (T,), and what :func:`measure` returned, stacked: (T, ...).
        image: RGB, (height, width, 3).

    Returns:
        The picture, RGB, 900 pixels wide.
    """
    iterations = history['iterations'].numpy()
    _, layers, levels = history['level_weights'].shape
    colors: list[ColorType] = [colormaps['viridis'](layer / layers) for layer in range(layers)]
    figure, left, right = history_figure(4.8, iterations[-1], 0.4)
    _draw_boxes(left.subplots(), history['boxes'][-1], image, colors)

    panels = right.subplots(2, 2, sharex=True).flatten()
    deviations, offsets, overlaps, weights = panels
    for layer, color in enumerate(colors):
        for axis in range(2):
            values = history['deviations'][:, layer, axis]
            draw_quantiles(deviations, iterations, values, color, LINES[axis])
        draw_quantiles(offsets, iterations, history['offsets'][:, layer], color, '-')
        draw_quantiles(overlaps, iterations, history['overlaps'][:, layer], color, '-')
        for level in range(levels):
            means = history['level_weights'][:, layer, level].numpy()
            line = LINES[level % len(LINES)]
            weights.plot(iterations, means, color=color, linestyle=line, linewidth=1.2)
    titles = (
        'standard deviations in boxes (x -, y - -)',
        'offsets, in boxes',
        'IoU with the predicted box',
        'weights of the levels by the gates',
    )
    for panel, title in zip(panels, titles, strict=True):
        finish_panel(panel, title)
    for panel in (overlaps, weights):
        panel.set_ylim(0, 1)
        panel.set_xlabel('iteration', fontsize=7)
    lines = [
        Line2D([], [], color=color, label=f'layer {layer}') for layer, color in enumerate(colors)
    ]
    lines += [
        Line2D([], [], color='0.3', linestyle=LINES[level % len(LINES)], label=f'level {level}')
        for level in range(levels)
    ]
    right.legend(
        handles=lines,
        loc='outside lower center',
        ncols=min(len(lines), 6),
        fontsize=7,
        title='lines: median over queries and heads; bands: 10 to 90 %; weights: mean',
        title_fontsize=7,
    )
    return figure_image(figure)


def _draw_boxes(axes: Axes, boxes: Tensor, image: np.ndarray, colors: list[ColorType]) -> None:
    """The boxes that the layers look around, and the predicted ones, (layers + 1, Q, 4)."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation='bicubic', alpha=0.6)
    pixels = boxes[:, :DRAWN] * torch.tensor([width, height] * 2)
    for layer, color in enumerate([*colors, 'C3']):
        for box in pixels[layer]:
            draw_box(axes, box, color, linewidth=1.5)
    axes.set(xlim=(0, width), ylim=(height, 0), xticks=[], yticks=[])
    axes.set_title(f'boxes of the {pixels.size(1)} best queries, now', fontsize=8)
    handles = [
        Line2D([], [], color=color, label=f'layer {layer} looks around')
        for layer, color in enumerate(colors)
    ]
    handles.append(Line2D([], [], color='C3', label='predicted'))
    axes.legend(
        handles=handles, loc='upper center', bbox_to_anchor=(0.5, -0.02), ncols=2, fontsize=7
    )
