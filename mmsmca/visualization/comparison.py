"""A figure that compares where several detectors attend for the same objects."""

import math
from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from .image_frame import ImageFrame, show_image
from .inspection import Inspection
from .panels import RED, WIDTH, attention_norm, color_bar, draw_box, new_figure


def comparison_figure(
    rows: Sequence[tuple[Tensor, dict[str, Inspection]]], layer: int = -1
) -> Figure:
    """Draw the co-attention of several detectors to the same objects, one object per row.

    For each detector, the figure shows the query whose box overlaps the object's most: its
    attention weights on all levels, averaged over heads, and their share inside the object's box.

    Args:
        rows: For every object, its box (x1, y1, x2, y2) in pixels of its image, and each
            detector's inspection of the image, by name.
        layer: Index of the decoder layer. Defaults to the last.

    Returns:
        The figure.
    """
    names = list(rows[0][1])
    images = [inspections[names[0]].image for _, inspections in rows]
    aspect = max(image.shape[0] / image.shape[1] for image in images)
    row_height = WIDTH / (len(names) + 1) * aspect
    figure = new_figure((row_height + 0.3) * len(rows) + 0.9)
    figure.suptitle(
        'Co-attention of the query whose box fits the object best, mean over heads', size=11
    )
    axes = figure.subplots(len(rows), len(names) + 1, squeeze=False)
    drawn = []
    for (image_axes, *panels), image, (box, inspections) in zip(axes, images, rows, strict=True):
        show_image(image_axes, image)
        draw_box(image_axes, box, 'white')
        for panel, inspection in zip(panels, inspections.values(), strict=True):
            query, overlap = inspection.query_nearest(box)
            maps = inspection.maps([query], layer)
            frame, weights = ImageFrame(inspection, maps), maps.head_means(maps.weights)
            drawn.append((panel, frame, weights))
            draw_box(panel, box, 'black', linestyle=':')
            draw_box(panel, inspection.boxes[query], 'black')
            share = f'{100 * frame.share_inside(weights, box):.0f} % of the weight in the object'
            panel.set_xlabel(f'query {query}, IoU {overlap:.2f}; {share}', fontsize=8)
    # Grids and input sizes may differ, so show weights per area of the finest cell.
    area = min(frame.finest_area for _, frame, _ in drawn)
    densities = [frame.density(weights) * area / frame.finest_area for _, frame, weights in drawn]
    norm = attention_norm(densities)
    for (panel, frame, _), density in zip(drawn, densities, strict=True):
        frame.show_map(panel, density, RED, norm)
    for panel, title in zip(axes[0], ['image and object', *names], strict=True):
        panel.set_title(title, fontsize=10)
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
