"""A figure of detectors beside each other, looking at the same objects."""

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from .image_frame import ImageFrame, show_image
from .inspection import Inspection
from .panels import RED, WIDTH, attention_norm, color_bar, draw_box, new_figure


def comparison_figure(
    rows: Sequence[tuple[np.ndarray, Tensor, dict[str, Inspection]]], layer: int = -1
) -> Figure:
    """Co-attention of several detectors to the same objects, one object per row.

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
            weights = maps.head_means(maps.weights, 0)
            frame = ImageFrame(image, inspection, maps)
            drawn.append((row, name, inspection, query, overlap, weights, frame))
    # Grids, and sizes of the networks' inputs, may differ: weights per area of the finest cell.
    area = min(frame.finest_area for *_, frame in drawn)
    densities = [frame.density(weights) * area / frame.finest_area for *_, weights, frame in drawn]
    norm = attention_norm(densities)
    for (row, name, inspection, query, overlap, weights, frame), density in zip(
        drawn, densities, strict=True
    ):
        image, box, _ = rows[row]
        show_image(axes[row][0], image)
        draw_box(axes[row][0], box, 'white')
        panel = axes[row][1 + names.index(name)]
        frame.show_map(panel, density, RED, norm)
        draw_box(panel, box, 'black', linestyle=':')
        draw_box(panel, inspection.boxes[query], 'black')
        share = frame.share_inside(weights, box)
        panel.set_xlabel(
            f'query {query}, IoU {overlap:.2f}; {100 * share:.0f} % of the weight in the object',
            fontsize=8,
        )
        if row == 0:
            panel.set_title(name, fontsize=10)
    axes[0][0].set_title('image and object', fontsize=10)
    side = math.sqrt(area)
    color_bar(
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
