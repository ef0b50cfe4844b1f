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
from .inspection import Inspection, ModulatedMaps
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
    maps = inspection.maps(queries, layer)
    assert isinstance(maps, ModulatedMaps)
    frame = ImageFrame(image, inspection, maps.strides)
    columns = len(maps.strides) + 3 + (len(maps.strides) > 1)
    height = (WIDTH / columns) * image.shape[0] / image.shape[1] + 0.1
    figure = new_figure(height * len(queries) + 1.45)
    figure.suptitle(f'Where the queries look, decoder layer {_layer(inspection, layer)}', size=11)
    rows = _grid(figure, len(queries), columns, height)
    norm = attention_norm(
        [
            frame.density(maps.head_means(weights, row))
            for weights in (maps.unmodulated, maps.weights)
            for row in range(len(queries))
        ]
    )
    for row, query in enumerate(queries):
        _draw_query(rows[row], frame, maps, row, inspection, query, norm, titles=row == 0)
        rows[row][0].set_ylabel(_found(inspection, query, classes), fontsize=8)
    _color_bars(figure, rows[-1], norm, len(maps.strides), min(maps.strides))
    _head_legend(figure, maps.weights[0].shape[0])
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
    maps = inspection.maps([query], layer)
    assert isinstance(maps, ModulatedMaps)
    frame = ImageFrame(image, inspection, maps.strides)
    levels, heads = len(maps.strides), maps.weights[0].shape[0]
    aspect = image.shape[0] / image.shape[1]
    columns = levels + 3 + (levels > 1)
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
    _draw_query(rows[0], frame, maps, 0, inspection, query, norm, titles=True)
    _color_bars(parts[0], rows[1], norm, levels, min(maps.strides))
    for level, part in enumerate(parts[1:]):
        _draw_heads(part, frame, maps, level, inspection.boxes[query])
    _head_legend(figure, heads)
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
    frame = ImageFrame(image, inspection, maps.strides)
    height, width = image.shape[:2]
    for row, query in enumerate(queries):
        center = frame.pixels(maps.centers[row]) * zoom
        for prior, stride in zip(maps.priors, maps.strides, strict=True):
            for head, place in enumerate(frame.pixels(prior.centers[:, row], stride) * zoom):
                # Drawing outside would enlarge the picture.
                place = np.clip(place, 0, (width - 1, height - 1))
                x, y = np.stack((center, place), axis=1)
                visualizer.draw_lines(x[None], y[None], colors=_head_color(head))
        visualizer.draw_points(center[None], colors='w', marker='s', sizes=np.array([60]))
        visualizer.draw_texts(
            f'query {query}', center + 8, colors='w', bboxes=dict(facecolor='k', alpha=0.6, pad=1)
        )
    return visualizer.get_image()


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
    inspection: Inspection,
    query: int,
    norm: Normalize,
    titles: bool,
) -> None:
    """Box, centre and Gaussians a level; means over the heads; weights of the levels."""
    levels = len(maps.strides)
    names = [f'stride {stride:g}' for stride in maps.strides] if levels > 1 else ['Gaussians']
    for level in range(levels):
        frame.show_image(panels[level])
        draw_box(panels[level], inspection.boxes[query], 'white')
        _draw_gaussians(panels[level], frame, maps, row, level)
    shares = maps.level_shares[:, row].mean(0)
    gaussians = frame.rasters([level[:, row].amax(0) for level in maps.gaussians])
    prior = np.tensordot(shares, gaussians, axes=1)
    frame.show_map(panels[levels], prior, BLUE, GAUSSIAN)
    for panel, weights in zip(panels[levels + 1 :], (maps.unmodulated, maps.weights), strict=False):
        frame.show_map(panel, frame.density(maps.head_means(weights, row)), RED, norm)
    for panel in panels[levels : levels + 3]:
        draw_box(panel, inspection.boxes[query], 'black')
    names += ['largest Gaussian', 'attention without it', 'attention with it']
    if levels > 1:
        _draw_level_shares(panels[-1], shares, maps.strides)
        panels[-1].set_box_aspect(frame.image.shape[0] / frame.image.shape[1])
        names.append('weight by stride')
    if titles:
        for panel, name in zip(panels, names, strict=True):
            panel.set_title(name, fontsize=8)


def _draw_level_shares(axes: Axes, shares: Tensor, strides: Sequence[float]) -> None:
    """Bars of how much of the output each level gives."""
    axes.barh(range(len(shares)), shares.numpy(), color='0.5')
    for level, share in enumerate(shares.tolist()):
        axes.text(min(share, 0.6) + 0.03, level, f'{share:.2f}', va='center', fontsize=7)
    axes.set(xlim=(0, 1), xticks=[0, 1], ylim=(len(shares) - 0.5, -0.5))
    axes.set_yticks(range(len(shares)), [f'{stride:g}' for stride in strides])
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
    x = np.arange(width * fine) / fine * stride / frame.scale_factor[0]
    y = np.arange(height * fine) / fine * stride / frame.scale_factor[1]
    center = frame.pixels(maps.centers[row])
    for head, value in enumerate(values.unflatten(-1, (height * fine, width * fine)).numpy()):
        color = _head_color(head)
        # Contours of a curve that the map does not cross would be a warning.
        if value.min() < HALF_MAXIMUM < value.max():
            axes.contour(x, y, value, levels=[HALF_MAXIMUM], colors=[color], linewidths=0.8)
        place = frame.pixels(centers[head, 0], stride)
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
    figure.suptitle(
        f'Stride {maps.strides[level]:g}, {width} x {height} cells{weight}. Below the Gaussians: '
        'offset from the centre in cells, scales',
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
        offset, scales = maps.offsets[level][head, 0], maps.priors[level].scales[head, 0]
        rows[0][head].set_title(f'head {head}', fontsize=8, color=_head_color(head))
        rows[0][head].set_xlabel(
            f'{offset[0]:+.1f} {offset[1]:+.1f}\n' + ' '.join(f'{s:.1f}' for s in scales.abs()),
            fontsize=7,
        )
    for axes, name in zip(
        rows[:, 0], ('Gaussian', 'attention\nwithout it', 'with it'), strict=True
    ):
        axes.set_ylabel(name, fontsize=8)
    for axes, colors, scale in ((rows[:1], BLUE, GAUSSIAN), (rows[1:], RED, norm)):
        color_bar(figure, '', scale, colors, ax=axes, aspect=12 * len(axes))


def _color_bars(
    figure: Figure | SubFigure, row: Sequence[Axes], norm: Normalize, levels: int, stride: float
) -> None:
    """Scales below the columns that :func:`_draw_query` fills, in the last row of the grid."""
    for panel in row:
        panel.set_axis_off()
    grid = row[0].get_gridspec()
    assert grid is not None  # As every one of subplots() has.
    for columns, colors, scale, label in (
        (slice(levels, levels + 1), BLUE, GAUSSIAN, 'Gaussian'),
        (
            slice(levels + 1, levels + 3),
            RED,
            norm,
            f'attention weight per cell of stride {stride:g},\nsquare-root colour scale',
        ),
    ):
        place = figure.add_subplot(grid[-1, columns])
        color_bar(figure, label, scale, colors, cax=place, orientation='horizontal')


def _head_legend(figure: Figure, heads: int) -> None:
    marks = [
        Line2D([], [], color=_head_color(head), marker='o', markersize=4, label=f'head {head}')
        for head in range(heads)
    ]
    center = Line2D(
        [], [], color='white', marker='P', markeredgecolor='k', linestyle='', label='centre'
    )
    figure.legend(
        handles=[center, *marks],
        loc='outside lower center',
        ncols=(heads + 1 if heads <= 8 else 9),
        fontsize=7,
        handlelength=1.2,
        columnspacing=1.0,
        title="query's centre, and where each head's Gaussian peaks (dot) and is one half (line)",
        title_fontsize=7,
    )
