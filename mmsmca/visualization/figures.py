"""Figures of one detector's co-attention: what its queries see, head by head."""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure, SubFigure
from matplotlib.lines import Line2D
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData
from torch import Tensor

from mmsmca.models.layers.explicit_attention import gaussian_log_prior

from .image_frame import ImageFrame
from .inspection import BoxTiedMaps, Inspection, ModulatedMaps
from .panels import BLUE, RED, WIDTH, attention_norm, color_bar, draw_box, new_figure

HALF_MAXIMUM = 0.5
GAUSSIAN = Normalize(0, 1)


def summary_figure(
    image: np.ndarray,
    inspection: Inspection,
    queries: Sequence[int],
    layer: int,
    classes: Sequence[str],
) -> Figure:
    """One row a query: its box and Gaussians, then the means over its heads.

    Args:
        image: RGB, (height, width, 3).
        inspection: What a detector with a spatial prior did with the image.
        queries: Numbers of the queries.
        layer: Number of the decoder layer.
        classes: Names of the classes.

    Returns:
        The figure.
    """
    maps = _modulated(inspection, queries, layer)
    labels = [_found(inspection, query, classes) for query in queries]
    figure = _rows_figure(
        image,
        inspection,
        [(maps, row, inspection.layer_boxes[layer, query]) for row, query in enumerate(queries)],
        labels,
    )
    figure.suptitle(f'Where the queries look, decoder layer {_layer(inspection, layer)}', size=11)
    return figure


def layers_figure(
    image: np.ndarray, inspection: Inspection, query: int, classes: Sequence[str]
) -> Figure:
    """One row a decoder layer: a query's box and Gaussians, then the means over its heads.

    Args:
        image: RGB, (height, width, 3).
        inspection: What a detector with a spatial prior did with the image.
        query: Number of the query.
        classes: Names of the classes.

    Returns:
        The figure.
    """
    numbers = range(len(inspection.layers))
    figure = _rows_figure(
        image,
        inspection,
        [
            (_modulated(inspection, [query], layer), 0, inspection.layer_boxes[layer, query])
            for layer in numbers
        ],
        [f'layer {layer}' for layer in numbers],
        same_part=True,
    )
    found = _found(inspection, query, classes).replace('\n', ', ')
    figure.suptitle(f'{found}: from layer to layer of the decoder', size=11)
    return figure


def query_figure(
    image: np.ndarray,
    inspection: Inspection,
    query: int,
    layer: int,
    classes: Sequence[str],
) -> Figure:
    """One query: the row of the summary, then every head on every level.

    Args:
        image: RGB, (height, width, 3).
        inspection: What a detector with a spatial prior did with the image.
        query: Number of the query.
        layer: Number of the decoder layer.
        classes: Names of the classes.

    Returns:
        The figure.
    """
    maps = _modulated(inspection, [query], layer)
    box = inspection.layer_boxes[layer, query]
    frame = ImageFrame(image, inspection, maps.strides, maps.cell_place)
    levels, heads = len(maps.strides), maps.weights[0].shape[0]
    aspect = image.shape[0] / image.shape[1]
    columns = _columns(maps)
    panel_height = WIDTH / columns * aspect
    top_height = panel_height + 1.1
    level_height = 3 * WIDTH / (heads + 1) * aspect + 0.75
    figure = new_figure(top_height + levels * level_height + 0.5)
    heights = [top_height] + [level_height] * levels
    parts = figure.subfigures(levels + 1, 1, squeeze=False, height_ratios=heights)[:, 0]
    found = _found(inspection, query, classes).replace('\n', ', ')
    parts[0].suptitle(f'{found}: decoder layer {_layer(inspection, layer)}', size=11)

    norm = attention_norm(
        [frame.density(maps.head_means(weights, 0)) for weights in (maps.unmodulated, maps.weights)]
    )
    rows = _grid(parts[0], 1, columns, panel_height)
    _draw_query(rows[0], frame, maps, 0, box, _part(frame, [(maps, 0, box)]), norm, titles=True)
    _color_bars(parts[0], rows[1], norm, maps)
    for level, part in enumerate(parts[1:]):
        _draw_heads(part, frame, maps, level, box)
    _legend(figure, maps)
    return figure


def detections_image(
    image: np.ndarray,
    inspection: Inspection,
    maps: ModulatedMaps,
    queries: Sequence[int],
    dataset_meta: dict,
) -> np.ndarray:
    """The image, enlarged, with boxes, and lines from the centres to those of the heads.

    Args:
        image: RGB, (height, width, 3).
        inspection: What a detector with a spatial prior did with the image.
        maps: Co-attention of the queries.
        queries: Their numbers.
        dataset_meta: ``classes`` and ``palette`` of the detector's data set.

    Returns:
        RGB, with a longer side of 900 pixels or more.
    """
    zoom = max(1.0, 900 / max(image.shape[:2]))
    image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_CUBIC)
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = dataset_meta
    found = InstanceData(
        bboxes=inspection.boxes[queries] * zoom,
        labels=inspection.labels[queries],
        scores=inspection.scores[queries],
    )
    visualizer.add_datasample(
        'detections', image, DetDataSample(pred_instances=found), draw_gt=False, pred_score_thr=0
    )
    frame = ImageFrame(image, inspection, maps.strides, maps.cell_place)
    height, width = image.shape[:2]
    for row, query in enumerate(queries):
        center = frame.pixels(maps.centers[row]) * zoom
        for level in range(_num_placements(maps)):
            prior, stride = maps.priors[level], maps.strides[level]
            places = frame.cell_pixels(prior.centers[:, row], stride) * zoom
            for head, place in enumerate(places):
                # Drawing outside would enlarge the picture.
                place = np.clip(place, 0, (width - 1, height - 1))
                x, y = np.stack((center, place), axis=1)
                visualizer.draw_lines(x[None], y[None], colors=_head_color(head))
        visualizer.draw_points(center[None], colors='w', marker='s', sizes=np.array([60]))
        visualizer.draw_texts(
            f'query {query}', center + 8, colors='w', bboxes=dict(facecolor='k', alpha=0.6, pad=1)
        )
    return visualizer.get_image()


def _modulated(inspection: Inspection, queries: Sequence[int], layer: int) -> ModulatedMaps:
    maps = inspection.maps(queries, layer)
    assert isinstance(maps, ModulatedMaps)
    return maps


def _num_placements(maps: ModulatedMaps) -> int:
    """Levels whose Gaussians are drawn over the image: one, where all have the same."""
    return 1 if isinstance(maps, BoxTiedMaps) else len(maps.strides)


def _columns(maps: ModulatedMaps) -> int:
    """Panels of a row that :func:`_draw_query` draws."""
    return _num_placements(maps) + 3 + (len(maps.strides) > 1)


def _rows_figure(
    image: np.ndarray,
    inspection: Inspection,
    queries: Sequence[tuple[ModulatedMaps, int, Tensor]],
    labels: Sequence[str],
    same_part: bool = False,
) -> Figure:
    """A row for every query: maps that have it, its place there, and its predicted box."""
    first = queries[0][0]
    # A layer may leave out the finest levels.
    frames = [ImageFrame(image, inspection, m.strides, m.cell_place) for m, _, _ in queries]
    columns = max(_columns(maps) for maps, _, _ in queries)
    height = (WIDTH / columns) * image.shape[0] / image.shape[1] + 0.1
    figure = new_figure(height * len(queries) + 1.45)
    rows = _grid(figure, len(queries), columns, height)
    norm = attention_norm(
        [
            frame.density(maps.head_means(weights, row))
            for frame, (maps, row, _) in zip(frames, queries, strict=True)
            for weights in (maps.unmodulated, maps.weights)
        ]
    )
    for panels, frame, query, label in zip(rows, frames, queries, labels, strict=False):
        part = _part(frames[0], queries if same_part else [query])
        _draw_query(panels, frame, *query, part, norm, titles=panels is rows[0])
        panels[0].set_ylabel(label, fontsize=8)
    _color_bars(figure, rows[-1], norm, first)
    _legend(figure, first)
    return figure


def _part(
    frame: ImageFrame, queries: Sequence[tuple[ModulatedMaps, int, Tensor]]
) -> tuple[np.ndarray, np.ndarray]:
    """Two corners of the part of the image that the Gaussians are drawn over.

    The whole of it, but for priors tied to boxes: those are as small as the boxes.
    """
    size = np.array(frame.image.shape[1::-1])
    points = []
    for maps, row, box in queries:
        if not isinstance(maps, BoxTiedMaps):
            return np.zeros(2), size
        prior, stride = maps.priors[0], maps.strides[0]
        # From a Gaussian's middle to where it is one half.
        reach = (math.log(2) * prior.beta) ** 0.5 / prior.scales[:, row].abs()
        for sign in (-1, 1):
            points.append(frame.cell_pixels(prior.centers[:, row] + sign * reach, stride))
        points += [box.numpy().reshape(2, 2), frame.pixels(maps.boxes[row].reshape(2, 2))]
    low, high = (bound(np.concatenate(points), axis=0) for bound in (np.min, np.max))
    # In the image's proportions and inside of it.
    sides = size * min(1, 1.1 * float(((high - low) / size).max()))
    start = np.clip((low + high - sides) / 2, 0, size - sides)
    return start, start + sides


def _grid(figure: Figure | SubFigure, rows: int, columns: int, height: float) -> list[list[Axes]]:
    """Panels of a height in inches, and a last row that is as high as a colour bar."""
    return figure.subplots(
        rows + 1, columns, squeeze=False, height_ratios=[height] * rows + [0.13]
    ).tolist()


def _layer(inspection: Inspection, layer: int) -> str:
    count = len(inspection.layers)
    return f'{layer % count} of 0 to {count - 1}'


def _found(inspection: Inspection, query: int, classes: Sequence[str]) -> str:
    name, score = classes[inspection.labels[query]], inspection.scores[query]
    return f'query {query}\n{name} {score:.2f}'


def _head_color(head: int) -> str:
    return f'C{head % 10}'


def _draw_query(
    panels: Sequence[Axes],
    frame: ImageFrame,
    maps: ModulatedMaps,
    row: int,
    box: Tensor,
    part: tuple[np.ndarray, np.ndarray],
    norm: Normalize,
    titles: bool,
) -> None:
    """Boxes, centre and Gaussians; means over the heads; weights of the levels."""
    levels, placements = len(maps.strides), _num_placements(maps)
    names = ['Gaussians, enlarged' if isinstance(maps, BoxTiedMaps) else 'Gaussians']
    if placements > 1:
        names = [f'stride {stride:g}' for stride in maps.strides]
    for level in range(placements):
        frame.show_image(panels[level])
        draw_box(panels[level], box, 'white', linewidth=1.5)
        if isinstance(maps, BoxTiedMaps):
            tied = maps.boxes[row] / frame.inspection.scale_factor.repeat(2)
            draw_box(panels[level], tied, 'black', linestyle='--')
        _draw_gaussians(panels[level], frame, maps, row, level)
        (left, top), (right, bottom) = part
        panels[level].set(xlim=(left, right), ylim=(bottom, top))
    images = panels[placements : placements + 3]
    shares = maps.level_shares[:, row].mean(0)
    gaussians = frame.rasters([level[:, row].amax(0) for level in maps.gaussians])
    prior = np.tensordot(shares, gaussians, axes=1)
    frame.show_map(images[0], prior, BLUE, GAUSSIAN)
    for panel, weights in zip(images[1:], (maps.unmodulated, maps.weights), strict=True):
        frame.show_map(panel, frame.density(maps.head_means(weights, row)), RED, norm)
    for panel in images:
        draw_box(panel, box, 'black')
    names += ['largest Gaussian', 'attention without it', 'attention with it']
    if levels > 1:
        _draw_level_shares(panels[-1], shares, maps, row)
        panels[-1].set_box_aspect(frame.image.shape[0] / frame.image.shape[1])
        also = '\n(blue: prior alone)' if isinstance(maps, BoxTiedMaps) else ''
        names.append(f'weight by stride{also}')
    for panel in panels[len(names) :]:
        panel.set_axis_off()
    if titles:
        for panel, name in zip(panels, names, strict=False):
            panel.set_title(name, fontsize=8)


def _draw_level_shares(axes: Axes, shares: Tensor, maps: ModulatedMaps, row: int) -> None:
    """Bars of how much of the output each level gives, and would give by the prior alone."""
    levels = np.arange(len(shares))
    bars = [(shares, RED(0.6))]
    if isinstance(maps, BoxTiedMaps):
        bars.insert(0, (maps.prior_shares[:, row].mean(0), BLUE(0.6)))
    thickness = 0.8 / len(bars)
    for number, (values, color) in enumerate(bars):
        place = levels + (number - (len(bars) - 1) / 2) * thickness
        axes.barh(place, values.numpy(), height=thickness, color=color)
        for y, value in zip(place, values.tolist(), strict=True):
            axes.text(min(value, 0.6) + 0.03, y, f'{value:.2f}', va='center', fontsize=7)
    axes.set(xlim=(0, 1), xticks=[0, 1], ylim=(len(shares) - 0.5, -0.5))
    axes.set_yticks(levels, [f'{stride:g}' for stride in maps.strides])
    axes.tick_params(labelsize=7)


def _draw_gaussians(
    axes: Axes, frame: ImageFrame, maps: ModulatedMaps, row: int, level: int
) -> None:
    """The query's centre, the heads' centres, and where their Gaussians are one half."""
    prior, stride = maps.priors[level], maps.strides[level]
    centers = prior.centers[:, row : row + 1]
    height, width = maps.gaussians[level].shape[-2:]
    # A grid of `fine` points a cell: the prior is the same function, in smaller units.
    fine = math.ceil(200 / max(height, width))
    units = centers.new_tensor([fine, fine, fine**2])[: prior.scales.size(-1)]
    values = gaussian_log_prior(
        centers[None] * fine,
        prior.scales[None, :, row : row + 1] / units,
        (height * fine, width * fine),
        prior.beta,
    ).exp()[0, :, 0]
    x = (np.arange(width * fine) / fine + maps.cell_place) * stride / frame.scale_factor[0]
    y = (np.arange(height * fine) / fine + maps.cell_place) * stride / frame.scale_factor[1]
    center = frame.pixels(maps.centers[row])
    for head, value in enumerate(values.unflatten(-1, (height * fine, width * fine)).numpy()):
        color = _head_color(head)
        # Contours of a curve that the map does not cross would be a warning.
        if value.min() < HALF_MAXIMUM < value.max():
            axes.contour(x, y, value, levels=[HALF_MAXIMUM], colors=[color], linewidths=0.8)
        place = frame.cell_pixels(centers[head, 0], stride)
        axes.plot(*zip(center, place, strict=True), color=color, linewidth=0.8)
        axes.plot(*place, 'o', color=color, markersize=3, markeredgecolor='k', markeredgewidth=0.3)
    axes.plot(*center, 'P', color='white', markersize=6, markeredgecolor='k', markeredgewidth=0.6)


def _draw_heads(
    figure: SubFigure, frame: ImageFrame, maps: ModulatedMaps, level: int, box: Tensor
) -> None:
    """One column a head: its Gaussian on a level, attention without and with it."""
    frame, heads = frame.of_level(level), maps.weights[level].shape[0]
    height, width = maps.weights[level].shape[-2:]
    weight = ''
    if len(maps.strides) > 1:
        weight = f', weight {maps.level_shares[:, 0, level].mean():.2f}'
    numbers = 'offset from the centre in cells, scales'
    if isinstance(maps, BoxTiedMaps):
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
    for head in range(heads):
        for axes, values, colors, scale in (
            (rows[0][head], maps.gaussians, BLUE, GAUSSIAN),
            (rows[1][head], maps.unmodulated, RED, norm),
            (rows[2][head], maps.weights, RED, norm),
        ):
            frame.show_map(axes, frame.rasters([values[level][head, 0]])[0], colors, scale)
            draw_box(axes, box, 'black', linewidth=0.5)
        rows[0][head].set_title(f'head {head}', fontsize=8, color=_head_color(head))
        rows[0][head].set_xlabel(_numbers(maps, level, head), fontsize=7)
    for axes, name in zip(
        rows[:, 0], ('Gaussian', 'attention\nwithout it', 'with it'), strict=True
    ):
        axes.set_ylabel(name, fontsize=8)
    for axes, colors, scale in ((rows[:1], BLUE, GAUSSIAN), (rows[1:], RED, norm)):
        color_bar(figure, '', scale, colors, ax=axes, aspect=12 * len(axes))


def _numbers(maps: ModulatedMaps, level: int, head: int) -> str:
    """What a head's prior is on a level, in numbers."""
    if isinstance(maps, BoxTiedMaps):
        share = f'{maps.prior_shares[head, 0, level]:.2f}'
        if level > 0:
            return share
        (x, y), deviations = maps.box_offsets[head, 0], maps.box_deviations[head, 0]
        return f'{x:+.2f} {y:+.2f}\n{deviations[0]:.2f} {deviations[1]:.2f}\n{share}'
    (x, y), scales = maps.offsets[level][head, 0], maps.priors[level].scales[head, 0]
    return f'{x:+.1f} {y:+.1f}\n' + ' '.join(f'{s:.1f}' for s in scales.abs())


def _color_bars(
    figure: Figure | SubFigure, row: Sequence[Axes], norm: Normalize, maps: ModulatedMaps
) -> None:
    """Scales below the columns that :func:`_draw_query` fills, in the last row of the grid."""
    for panel in row:
        panel.set_axis_off()
    grid = row[0].get_gridspec()
    assert grid is not None  # As every one of subplots() has.
    first, stride = _num_placements(maps), min(maps.strides)
    for columns, colors, scale, label in (
        (slice(first, first + 1), BLUE, GAUSSIAN, 'Gaussian'),
        (
            slice(first + 1, first + 3),
            RED,
            norm,
            f'attention weight per cell of stride {stride:g},\nsquare-root colour scale',
        ),
    ):
        place = figure.add_subplot(grid[-1, columns])
        color_bar(figure, label, scale, colors, cax=place, orientation='horizontal')


def _legend(figure: Figure, maps: ModulatedMaps) -> None:
    """What the marks are."""
    heads = maps.weights[0].shape[0]
    marks = [
        Line2D([], [], color=_head_color(head), marker='o', markersize=4, label=f'head {head}')
        for head in range(heads)
    ]
    center = Line2D(
        [], [], color='white', marker='P', markeredgecolor='k', linestyle='', label='centre'
    )
    title = "query's centre, and where each head's Gaussian peaks (dot) and is one half (line)"
    if isinstance(maps, BoxTiedMaps):
        title = (
            'dashed: the box that the layer looks around; solid: the box that it predicts\n'
            "centre of the first, where each head's Gaussian peaks (dot) and is one half (line)"
        )
    figure.legend(
        handles=[center, *marks],
        loc='outside lower center',
        ncols=(heads + 1 if heads <= 8 else 9),
        fontsize=7,
        handlelength=1.2,
        columnspacing=1.0,
        title=title,
        title_fontsize=7,
    )
