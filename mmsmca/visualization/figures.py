"""Figures of co-attention: what one query sees, head by head, and detectors beside each other."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize, PowerNorm
from matplotlib.figure import Figure, SubFigure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.structures import InstanceData
from torch import Tensor

from mmsmca.models.layers.explicit_attention import gaussian_log_prior

from .inspection import CoAttentionMaps, Inspection, ModulatedMaps

WIDTH = 9.0  # inches: 900 pixels of a README at 100 dpi, where a font of 7 is 10 pixels high
DPI = 140
HALF_MAXIMUM = 0.5
GAUSSIAN = Normalize(0, 1)


def transparent_colors(name: str) -> ListedColormap:
    """A colormap that lets the image through where the value is low."""
    colors = colormaps[name](np.linspace(0.25, 1, 256))
    colors[:, 3] = np.linspace(0, 0.9, 256)
    return ListedColormap(colors)


BLUE = transparent_colors('Blues')
RED = transparent_colors('YlOrRd')


class ImageFrame:
    """The coordinates of an image and of the cells of a detector that looked at it.

    Args:
        image: RGB, (height, width, 3).
        inspection: What the detector did with it.
        strides: Stride of every level, in pixels of the network's input.
    """

    def __init__(self, image: np.ndarray, inspection: Inspection, strides: Sequence[float]) -> None:
        self.image = image
        self.inspection = inspection
        self.strides = strides
        self.input_size = inspection.input_size
        self.scale_factor = inspection.scale_factor.numpy()

    @property
    def finest_area(self) -> float:
        """Area of a cell of the finest level, in squared pixels of the image."""
        return min(self.strides) ** 2 / float(self.scale_factor.prod())

    def of_level(self, level: int) -> 'ImageFrame':
        """The frame of one level alone."""
        return ImageFrame(self.image, self.inspection, self.strides[level : level + 1])

    def pixels(self, points: Tensor, stride: float = 1) -> np.ndarray:
        """From cells of a level, or pixels of the network's input, to pixels of the image."""
        return points.numpy() * stride / self.scale_factor

    def rasters(self, maps: Sequence[Tensor]) -> np.ndarray:
        """Maps of all levels, (H_j, W_j) each, on one raster: (L, rows, columns).

        Cells are squares around their places; the raster's are half as large as the finest ones,
        so that no cell's edge falls inside of one. Outside of a level's cells it is zero.
        """
        step = min(self.strides) / 2
        columns, rows = (math.ceil(side / step) for side in self.input_size)
        rasters = np.zeros((len(maps), rows, columns))
        for raster, level, stride in zip(rasters, maps, self.strides, strict=True):
            y, x = ((np.arange(n) + 0.5) * step / stride + 0.5 for n in (rows, columns))
            height, width = level.shape
            y, x = y[y < height].astype(int), x[x < width].astype(int)
            raster[: len(y), : len(x)] = level.numpy()[np.ix_(y, x)]
        return rasters

    def density(self, maps: Sequence[Tensor]) -> np.ndarray:
        """Weights of all levels together, per cell of the finest one, (rows, columns)."""
        areas = np.square(self.strides) / min(self.strides) ** 2
        return np.tensordot(1 / areas, self.rasters(maps), axes=1)

    def share_inside(self, maps: Sequence[Tensor], box: Tensor) -> float:
        """How much of the weights of all levels lies inside a box, by the areas of the cells.

        Args:
            maps: Weights that sum to 1 over all levels, (H_j, W_j) a level.
            box: (x1, y1, x2, y2) in pixels of the image.
        """
        share = 0.0
        for level, stride in zip(maps, self.strides, strict=True):
            low, high = (box.numpy().reshape(2, 2) * self.scale_factor) / stride
            covered = []
            for axis, cells in enumerate(level.shape[::-1]):
                place = np.arange(cells)
                ends = np.minimum(place + 0.5, high[axis]), np.maximum(place - 0.5, low[axis])
                covered.append(np.maximum(ends[0] - ends[1], 0))
            share += float(covered[1] @ level.numpy() @ covered[0])
        return share

    def show_image(self, axes: Axes, pale: bool = False) -> None:
        """Draw the image, enlarged smoothly, in pale grey to put a map on it."""
        height, width = self.image.shape[:2]
        image = self.image
        if pale:
            grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(float)
            low, high = np.percentile(grey, (1, 99))
            grey = np.clip((grey - low) / max(high - low, 1), 0, 1)
            image = np.repeat((165 + 80 * grey)[..., None], 3, axis=-1).astype(np.uint8)
        axes.imshow(image, extent=(0, width, height, 0), interpolation='bicubic')
        axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))

    def show_map(
        self, axes: Axes, raster: np.ndarray, colors: ListedColormap, norm: Normalize
    ) -> None:
        """Draw a raster over the pale image, each cell in one colour."""
        self.show_image(axes, pale=True)
        rows, columns = raster.shape
        step = min(self.strides) / 2 / self.scale_factor
        axes.imshow(
            raster,
            cmap=colors,
            norm=norm,
            extent=(0, columns * step[0], rows * step[1], 0),
            interpolation='nearest',
        )
        height, width = self.image.shape[:2]
        axes.set(xlim=(0, width), ylim=(height, 0))


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
    norm = _attention_norm(
        [
            frame.density(_head_means(maps, weights, row))
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

    norm = _attention_norm(
        [
            frame.density(_head_means(maps, weights, 0))
            for weights in (maps.unmodulated, maps.weights)
        ]
    )
    rows = _grid(parts[0], 1, columns, panel_height)
    _draw_query(rows[0], frame, maps, 0, inspection, query, norm, titles=True)
    _color_bars(parts[0], rows[1], norm, levels, min(maps.strides))
    for level, part in enumerate(parts[1:]):
        _draw_heads(part, frame, maps, level, inspection.boxes[query])
    _head_legend(figure, heads)
    return figure


def comparison_figure(
    rows: Sequence[tuple[np.ndarray, Tensor, dict[str, Inspection]]], layer: int = -1
) -> Figure:
    """Co-attention of several detectors to the same objects, one object a row.

    Each detector shows the query whose box overlaps the object's most: the mean of its attention
    weights over heads, all levels together, and how much of it lies inside the object's box.

    Args:
        rows: For every object its image (RGB), its box (x1, y1, x2, y2) in pixels of the image, and
            what each detector, by name, did with the image.
        layer: Number of the decoder layer. Defaults to the last.

    Returns:
        The figure.
    """
    names = list(rows[0][2])
    aspect = max(image.shape[0] / image.shape[1] for image, _, _ in rows)
    row_height = WIDTH / (len(names) + 1) * aspect
    figure = new_figure((row_height + 0.3) * len(rows) + 0.9)
    figure.suptitle(
        'Co-attention of the query whose box fits the object best, mean over heads', size=11
    )
    axes = figure.subplots(len(rows), len(names) + 1, squeeze=False)
    drawn = []
    for row, (image, box, inspections) in enumerate(rows):
        for name, inspection in inspections.items():
            query, overlap = inspection.query_nearest(box)
            maps = inspection.maps([query], layer)
            weights = _head_means(maps, maps.weights, 0)
            frame = ImageFrame(image, inspection, maps.strides)
            drawn.append((row, name, inspection, query, overlap, weights, frame))
    # Grids, and sizes of the networks' inputs, may differ: weights per area of the finest cell.
    area = min(frame.finest_area for *_, frame in drawn)
    densities = [frame.density(weights) * area / frame.finest_area for *_, weights, frame in drawn]
    norm = _attention_norm(densities)
    for (row, name, inspection, query, overlap, weights, frame), density in zip(
        drawn, densities, strict=True
    ):
        image, box, _ = rows[row]
        frame.show_image(axes[row][0])
        _draw_box(axes[row][0], box, 'white')
        panel = axes[row][1 + names.index(name)]
        frame.show_map(panel, density, RED, norm)
        _draw_box(panel, box, 'black', linestyle=':')
        _draw_box(panel, inspection.boxes[query], 'black')
        share = frame.share_inside(weights, box)
        panel.set_xlabel(
            f'query {query}, IoU {overlap:.2f}; {100 * share:.0f} % of the weight in the object',
            fontsize=8,
        )
        if row == 0:
            panel.set_title(name, fontsize=10)
    axes[0][0].set_title('image and object', fontsize=10)
    side = math.sqrt(area)
    _color_bar(
        figure,
        f'attention weight per {side:.3g} x {side:.3g} pixels, square-root colour scale. '
        'Solid: predicted box. Dotted: the object.',
        norm,
        RED,
        ax=axes,
        location='bottom',
        aspect=60,
        shrink=0.6,
    )
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


def save_figure(figure: Figure, path: Path) -> list[Path]:
    """Write a figure as PNG and as SVG.

    Args:
        figure: The figure.
        path: Where, whatever its suffix.

    Returns:
        The files.
    """
    paths = [path.with_suffix(suffix) for suffix in ('.png', '.svg')]
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in paths:
        figure.savefig(file, dpi=DPI, metadata={'Date': None} if file.suffix == '.svg' else None)
    return paths


def new_figure(height: float) -> Figure:
    """An empty figure as wide as a README, of a height in inches."""
    return Figure(figsize=(WIDTH, height), layout=ConstrainedLayoutEngine(h_pad=0.07))


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


def _head_means(maps: CoAttentionMaps, weights: Sequence[Tensor], row: int) -> list[Tensor]:
    """Weights in the output, mean over heads, (H_j, W_j) a level."""
    return [
        (maps.level_weights[:, row, level, None, None] * level_weights[:, row]).mean(0)
        for level, level_weights in enumerate(weights)
    ]


def _attention_norm(rasters: Sequence[np.ndarray]) -> PowerNorm:
    """One scale for all of them; the root shows a spread of small weights beside large ones."""
    return PowerNorm(0.5, vmin=0, vmax=max(float(raster.max()) for raster in rasters))


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
        _draw_box(panels[level], inspection.boxes[query], 'white')
        _draw_gaussians(panels[level], frame, maps, row, level)
    shares = maps.level_shares[:, row].mean(0)
    gaussians = frame.rasters([level[:, row].amax(0) for level in maps.gaussians])
    prior = np.tensordot(shares, gaussians, axes=1)
    frame.show_map(panels[levels], prior, BLUE, GAUSSIAN)
    for panel, weights in zip(panels[levels + 1 :], (maps.unmodulated, maps.weights), strict=False):
        frame.show_map(panel, frame.density(_head_means(maps, weights, row)), RED, norm)
    for panel in panels[levels : levels + 3]:
        _draw_box(panel, inspection.boxes[query], 'black')
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
    norm = _attention_norm([maps.unmodulated[level].numpy(), maps.weights[level].numpy()])
    for head in range(heads):
        for axes, values, colors, scale in (
            (rows[0][head], maps.gaussians, BLUE, GAUSSIAN),
            (rows[1][head], maps.unmodulated, RED, norm),
            (rows[2][head], maps.weights, RED, norm),
        ):
            frame.show_map(axes, frame.rasters([values[level][head, 0]])[0], colors, scale)
            _draw_box(axes, box, 'black', linewidth=0.5)
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
        _color_bar(figure, '', scale, colors, ax=axes, aspect=12 * len(axes))


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
        _color_bar(figure, label, scale, colors, cax=place, orientation='horizontal')


def _color_bar(
    figure: Figure | SubFigure, label: str, norm: Normalize, colors: ListedColormap, **place
) -> None:
    """A scale with ticks at even distances, also where it is that of a root."""
    ticks = norm.inverse(np.linspace(0, 1, 5))
    bar = figure.colorbar(ScalarMappable(norm, colors), ticks=ticks, **place)
    bar.set_ticklabels([f'{tick:.2g}' for tick in ticks])
    bar.set_label(label, fontsize=7)
    bar.ax.tick_params(labelsize=7)


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


def _draw_box(
    axes: Axes, box: Tensor, color: str, linestyle: str = '-', linewidth: float = 1
) -> None:
    x1, y1, x2, y2 = box.tolist()
    axes.add_patch(
        Rectangle(
            (x1, y1),
            x2 - x1,
            y2 - y1,
            fill=False,
            edgecolor=color,
            linewidth=linewidth,
            ls=linestyle,
        )
    )
