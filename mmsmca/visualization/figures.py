"""Figures of one detector's co-attention: where its queries look, also head by head."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData
from torch import Tensor

from .image_frame import ImageFrame, show_image
from .inspection import Inspection
from .maps import CoAttentionMaps, Gaussians
from .panels import BLUE, RED, WIDTH, attention_norm, color_bar, draw_box, draw_legend, new_figure

GAUSSIAN = Normalize(0, 1)


class Row(NamedTuple):
    """Content of one row of a figure: a query in a decoder layer, and the box it predicts there."""

    label: str
    maps: CoAttentionMaps
    frame: ImageFrame
    box: Tensor
    densities: list[np.ndarray]  # Attention without and with the prior, see ImageFrame.


def summary_figure(inspection: Inspection, queries: Sequence[int], layer: int) -> Figure:
    """Draw one row per query: its box and Gaussians, then the means over its heads.

    Args:
        inspection: Inspection of an image by a detector with a spatial prior.
        queries: Indices of the queries.
        layer: Index of the decoder layer.

    Returns:
        The figure.
    """
    rows = [_row(inspection, query, layer, _found(inspection, query, '\n')) for query in queries]
    figure = new_figure(_panel_height(rows) * len(rows) + 1.5)
    number = layer % len(inspection.layers)
    figure.suptitle(f'Where the queries look, decoder layer {number}', size=11)
    _draw_rows(figure, rows)
    _legend(figure, rows[0].maps)
    return figure


def query_figure(inspection: Inspection, query: int, layer: int) -> Figure:
    """Draw one query: its row of the summary, then every head on every level.

    Arguments and result are those of :func:`summary_figure`, for one query.
    """
    row = _row(inspection, query, layer)
    top_height, levels = _panel_height([row]) + 1, len(row.maps.strides)
    level_height = 3 * WIDTH / (len(row.maps.weights[0]) + 1) * row.frame.aspect + 0.75
    figure = new_figure(top_height + levels * level_height + 0.5)
    number = layer % len(inspection.layers)
    figure.suptitle(f'{_found(inspection, query)}: decoder layer {number}', size=11)
    heights = [top_height] + [level_height] * levels
    top, *parts = figure.subfigures(levels + 1, 1, squeeze=False, height_ratios=heights)[:, 0]
    _draw_rows(top, [row])
    for level, part in enumerate(parts):
        _draw_heads(part, row, level)
    _legend(figure, row.maps)
    return figure


def detections_image(inspection: Inspection, queries: Sequence[int], layer: int) -> np.ndarray:
    """Draw boxes over the enlarged image, with lines from queries' centres to heads' centres.

    Arguments are those of :func:`summary_figure`.

    Returns:
        RGB image whose longer side has at least 900 pixels.
    """
    maps = inspection.maps(queries, layer)
    frame, image = ImageFrame(inspection, maps), inspection.image
    zoom = max(1.0, 900 / max(image.shape[:2]))
    image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    visualizer = DetLocalVisualizer(bbox_color='random', text_color='white')
    visualizer.dataset_meta = dict(classes=inspection.classes)
    found = InstanceData(
        bboxes=inspection.boxes[queries] * zoom,
        labels=inspection.labels[queries],
        scores=inspection.scores[queries],
    )
    visualizer.add_datasample(
        'detections', image, DetDataSample(pred_instances=found), draw_gt=False, pred_score_thr=0
    )
    # Drawing outside the image would enlarge the picture.
    corner = image.shape[1] - 1, image.shape[0] - 1
    peaks = np.clip(frame.pixels(maps.prior.peaks) * zoom, 0, corner)
    for row, query in enumerate(queries):
        center = frame.pixels(maps.prior.centers[row]) * zoom
        for level in peaks[:, :, row]:
            for head, peak in enumerate(level):
                x, y = np.stack((center, peak), axis=1)
                visualizer.draw_lines(x[None], y[None], colors=f'C{head}')
        visualizer.draw_points(center[None], colors='w', marker='s', sizes=np.array([60]))
        visualizer.draw_texts(
            f'query {query}', center + 8, colors='w', bboxes=dict(facecolor='k', alpha=0.6, pad=1)
        )
    return visualizer.get_image()


def _row(inspection: Inspection, query: int, layer: int, label: str = '') -> Row:
    maps = inspection.maps([query], layer)
    frame = ImageFrame(inspection, maps)
    densities = [
        frame.density(maps.head_means(weights)) for weights in (maps.unmodulated, maps.weights)
    ]
    return Row(label, maps, frame, inspection.layer_boxes[layer, query], densities)


def _found(inspection: Inspection, query: int, separator: str = ', ') -> str:
    name = inspection.classes[inspection.labels[query]]
    return f'query {query}{separator}{name} {inspection.scores[query]:.2f}'


def _num_columns(rows: Sequence[Row]) -> int:
    """Number of panels per row: Gaussians, three maps and, with several levels, their weights."""
    return max(len(r.maps.prior.peaks) + 3 + (len(r.maps.strides) > 1) for r in rows)


def _panel_height(rows: Sequence[Row]) -> float:
    return WIDTH / _num_columns(rows) * rows[0].frame.aspect + 0.1


def _draw_rows(figure: Figure | SubFigure, rows: Sequence[Row]) -> None:
    """Draw rows of panels, with colour scales below."""
    maps, columns = rows[0].maps, _num_columns(rows)
    heights = [_panel_height(rows)] * len(rows) + [0.13]
    panels = figure.subplots(len(rows) + 1, columns, squeeze=False, height_ratios=heights)
    norm = attention_norm([density for row in rows for density in row.densities])
    for number, (axes, row) in enumerate(zip(panels, rows, strict=False)):
        _draw_row(axes, row, norm, titles=number == 0)
        axes[0].set_ylabel(row.label, fontsize=8)
    for axes in panels[-1]:
        axes.set_axis_off()
    grid, first = panels[0, 0].get_gridspec(), len(maps.prior.peaks)
    unit = f'attention weight per cell of stride {min(maps.strides):g},\nsquare-root colour scale'
    for place, colors, scale, label in (
        (slice(first, first + 1), BLUE, GAUSSIAN, 'Gaussian'),
        (slice(first + 1, first + 3), RED, norm, unit),
    ):
        axes = figure.add_subplot(grid[-1, place])
        color_bar(figure, label, scale, colors, cax=axes, orientation='horizontal')


def _draw_row(panels: Sequence[Axes], row: Row, norm: Normalize, titles: bool) -> None:
    """Draw a row: boxes, centre and Gaussians, then means over heads, then level weights."""
    maps, prior, frame = row.maps, row.maps.prior, row.frame
    placements, part = len(prior.peaks), _part(row)
    names = ['Gaussians' if prior.boxes is None else 'Gaussians, enlarged']
    if placements > 1:
        names = [f'stride {stride:g}' for stride in maps.strides]
    for level, axes in enumerate(panels[:placements]):
        show_image(axes, frame.image)
        draw_box(axes, row.box, 'white', linewidth=1.5)
        if prior.boxes is not None:
            tied = frame.pixels(prior.boxes[0].reshape(2, 2))
            draw_box(axes, tied.flatten(), 'black', linestyle='--')
        _draw_gaussians(axes, frame, prior, level)
        axes.set(xlim=part[:, 0], ylim=part[::-1, 1])
    images = panels[placements : placements + 3]
    shares = maps.level_shares[:, 0].mean(0)
    gaussians = frame.rasters([level[:, 0].amax(0) for level in maps.gaussians])
    frame.show_map(images[0], np.tensordot(shares, gaussians, axes=1), BLUE, GAUSSIAN)
    for axes, density in zip(images[1:], row.densities, strict=True):
        frame.show_map(axes, density, RED, norm)
    for axes in images:
        draw_box(axes, row.box, 'black')
    names += ['largest Gaussian', 'attention without it', 'attention with it']
    if len(maps.strides) > 1:
        _draw_level_shares(panels[-1], maps)
        panels[-1].set_box_aspect(frame.aspect)
        note = '' if prior.boxes is None else '\n(blue: prior alone)'
        names.append(f'weight by stride{note}')
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes, name in zip(panels, names if titles else [], strict=False):
        axes.set_title(name, fontsize=8)


def outlines(prior: Gaussians, level: int) -> Tensor:
    """Contours at one half of the first query's Gaussians, in pixels, (M, points, 2)."""
    angles = torch.linspace(0, 2 * math.pi, 100, dtype=prior.scales.dtype)
    directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
    scales = prior.scales[level, :, 0, None]
    # The radius r solves a r^2 + b r^4 = log 2.
    a = (scales[..., :2] * directions).square().sum(-1).clamp(min=1e-12)
    b = (scales[..., 2:] * directions.prod(-1, keepdim=True)).square().sum(-1)
    radii = (2 * math.log(2) / (a + (a.square() + 4 * math.log(2) * b).sqrt())).sqrt()
    return prior.peaks[level, :, 0, None] + radii[..., None] * directions


def _part(row: Row) -> np.ndarray:
    """Two corners of the part of the image that the Gaussians are drawn over, (2, 2).

    This is the whole image, unless priors are tied to boxes and thus as small as the boxes.
    """
    prior, frame = row.maps.prior, row.frame
    size = np.array(frame.image.shape[1::-1])
    if prior.boxes is None:
        return np.stack((0 * size, size))
    points = [frame.pixels(outlines(prior, 0).flatten(0, 1)), row.box.numpy().reshape(2, 2)]
    points.append(frame.pixels(prior.boxes[0].reshape(2, 2)))
    low, high = (bound(np.concatenate(points), axis=0) for bound in (np.min, np.max))
    # Keep the image's aspect ratio, and stay inside the image.
    sides = size * min(1, 1.1 * float(((high - low) / size).max()))
    start = np.clip((low + high - sides) / 2, 0, size - sides)
    return np.stack((start, start + sides))


def _draw_gaussians(axes: Axes, frame: ImageFrame, prior: Gaussians, level: int) -> None:
    """Draw the centres of the query and its heads, and the Gaussians' contours at one half."""
    center = frame.pixels(prior.centers[0])
    peaks = frame.pixels(prior.peaks[level, :, 0])
    for head, outline in enumerate(frame.pixels(outlines(prior, level))):
        color = f'C{head}'
        axes.plot(*outline.T, color=color, linewidth=0.8)
        axes.plot(*np.stack((center, peaks[head]), axis=1), color=color, linewidth=0.8)
        axes.plot(
            *peaks[head], 'o', color=color, markersize=3, markeredgecolor='k', markeredgewidth=0.3
        )
    axes.plot(*center, 'P', color='white', markersize=6, markeredgecolor='k', markeredgewidth=0.6)


def _draw_level_shares(axes: Axes, maps: CoAttentionMaps) -> None:
    """Draw each level's share of the output and, for box priors, that by the prior alone."""
    bars = [(maps.level_shares, RED(0.6))]
    if maps.prior.boxes is not None:
        bars.insert(0, (maps.prior_shares, BLUE(0.6)))
    levels, thickness = np.arange(len(maps.strides)), 0.8 / len(bars)
    for number, (shares, color) in enumerate(bars):
        place = levels + (number - (len(bars) - 1) / 2) * thickness
        values = shares[:, 0].mean(0).tolist()
        bar = axes.barh(place, values, height=thickness, color=color)
        axes.bar_label(bar, fmt='%.2f', fontsize=7, padding=2)
    axes.set(xlim=(0, 1.25), xticks=[0, 1], ylim=(len(levels) - 0.5, -0.5))
    axes.set_yticks(levels, [f'{stride:g}' for stride in maps.strides])
    axes.tick_params(labelsize=7)


def _draw_heads(figure: SubFigure, row: Row, level: int) -> None:
    """Draw one column per head: its Gaussian on a level, and attention without and with it."""
    maps = row.maps
    heads, _, height, width = maps.weights[level].shape
    weight = ''
    if len(maps.strides) > 1:
        weight = f', weight {maps.level_shares[:, 0, level].mean():.2f}'
    numbers = 'offset from the centre in cells, scales'
    if maps.prior.boxes is not None:
        numbers = 'weight of the level by the prior alone'
        if level == 0:
            numbers = f'offset and standard deviation in boxes; {numbers}'
    figure.suptitle(
        f'Stride {maps.strides[level]:g}, {width} x {height} cells{weight}. Below the Gaussians: '
        f'{numbers}',
        fontsize=8,
    )
    rows = figure.subplots(3, heads, squeeze=False)
    norm = attention_norm([maps.unmodulated[level].numpy(), maps.weights[level].numpy()])
    for axes, name, values, colors, scale in (
        (rows[0], 'Gaussian', maps.gaussians, BLUE, GAUSSIAN),
        (rows[1], 'attention\nwithout it', maps.unmodulated, RED, norm),
        (rows[2], 'with it', maps.weights, RED, norm),
    ):
        axes[0].set_ylabel(name, fontsize=8)
        for head in range(heads):
            raster = row.frame.rasters([of_level[head, 0] for of_level in values])[level]
            row.frame.show_map(axes[head], raster, colors, scale)
            draw_box(axes[head], row.box, 'black', linewidth=0.5)
    for head, axes in enumerate(rows[0]):
        axes.set_title(f'head {head}', fontsize=8, color=f'C{head}')
        axes.set_xlabel(_numbers(maps, level, head), fontsize=7)
    for axes, colors, scale in ((rows[:1], BLUE, GAUSSIAN), (rows[1:], RED, norm)):
        color_bar(figure, '', scale, colors, ax=axes, aspect=12 * len(axes))


def _numbers(maps: CoAttentionMaps, level: int, head: int) -> str:
    """A head's prior on a level, in numbers."""
    share, prior = f'{maps.prior_shares[head, 0, level]:.2f}', maps.prior
    if level >= len(prior.peaks):
        return share
    (x, y), widths = prior.offsets[level, head, 0], prior.widths[level, head, 0].abs()
    if prior.boxes is None:
        return f'{x:+.1f} {y:+.1f}\n' + ' '.join(f'{width:.1f}' for width in widths)
    return f'{x:+.2f} {y:+.2f}\n{widths[0]:.2f} {widths[1]:.2f}\n{share}'


def _legend(figure: Figure | SubFigure, maps: CoAttentionMaps) -> None:
    """Explain the marks."""
    heads = len(maps.weights[0])
    centre = dict(color='white', marker='P', markeredgecolor='k', linestyle='', label='centre')
    marks = [dict(color=f'C{i}', marker='o', markersize=4, label=f'head {i}') for i in range(heads)]
    title = "query's centre, and where each head's Gaussian peaks (dot) and is one half (line)"
    if maps.prior.boxes is not None:
        title = (
            'dashed: the box that the layer looks around; solid: the box that it predicts\n'
            "centre of the first, where each head's Gaussian peaks (dot) and is one half (line)"
        )
    draw_legend(figure, [centre, *marks], title, 9, handlelength=1.2, columnspacing=1.0)
