"""A page of annotated images, to see whether boxes and names are right."""

import os
import random
from collections.abc import Iterator, Sequence
from itertools import islice, zip_longest
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import TABLEAU_COLORS
from matplotlib.figure import Figure
from matplotlib.typing import ColorType

from mmsmca.checks.coco_file import OBJECT, is_box, kind_of, load_json
from mmsmca.checks.data import Used
from mmsmca.errors import DataError

from .panels import draw_box

COLUMNS, ROWS = 4, 4
INCHES, DPI = 3.5, 120  # of an image
COLORS = list(TABLEAU_COLORS.values())


class Box(NamedTuple):
    """An annotation; its box is x, y, width and height in pixels."""

    bbox: list[float]
    name: str
    color: ColorType
    is_object: bool


class Annotated(NamedTuple):
    """An image, RGB, with its annotations."""

    title: str
    pixels: np.ndarray
    boxes: list[Box]


def draw_page(datasets: Sequence[Used], path: Path) -> int:
    """Draw images of data sets as training loads them, with their boxes and category names.

    Boxes that training leaves out are dotted. All data sets have the same share of the page, and
    all categories take turns.

    Args:
        datasets: Data sets whose annotations can be read.
        path: PNG to write, replaced if it exists; its folder is created.

    Returns:
        Number of images. If it is 0, nothing is written.
    """
    share = COLUMNS * ROWS // max(len(datasets), 1)
    images = [image for one in datasets for image in islice(_annotated(one), share)]
    if images:
        rows = -(-len(images) // COLUMNS)
        figure = Figure(figsize=(COLUMNS * INCHES, rows * INCHES), layout='constrained')
        grid = figure.subplots(rows, COLUMNS, squeeze=False).ravel()
        for axes in grid:
            axes.set_axis_off()
        for axes, image in zip(grid, images, strict=False):
            _draw(axes, image)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=DPI)
    return len(images)


def _annotated(used: Used) -> Iterator[Annotated]:
    """Images with objects that can be loaded; those with each category come in turn."""
    file, chosen = used.file, set(used.ids)
    by_category = [
        sorted(file.count([OBJECT], [name]).keys() & chosen, key=str) for name in file.categories
    ]
    for ids in by_category:
        random.Random(0).shuffle(ids)
    turns = [i for turn in zip_longest(*by_category) for i in turn if i is not None]
    content = load_json(used.dataset.ann_file)
    categories = {
        one.get('id'): (str(one.get('name')), COLORS[i % len(COLORS)])
        for i, one in enumerate(content['categories'])
        if isinstance(one, dict)
    }
    for image_id in dict.fromkeys(turns):
        path, image = used.path(image_id), file.images[image_id]._asdict()
        try:
            loaded = used.dataset.pipeline(dict(img_path=path))
        except DataError:
            continue
        boxes = [
            Box(entry['bbox'], *categories[entry['category_id']], kind_of(entry, image) == OBJECT)
            for entry in content['annotations']
            if isinstance(entry, dict)
            and entry.get('image_id') == image_id
            and is_box(entry.get('bbox'))
            and entry.get('category_id') in categories
        ]
        title = f'{used.key.split("_")[0]}: {os.path.basename(path)}'
        yield Annotated(title, loaded['img'][..., ::-1], boxes)


def _draw(axes: Axes, image: Annotated) -> None:
    height, width = image.pixels.shape[:2]
    # Matplotlib alone would leave out pixels of large images.
    scale = min(1, INCHES * DPI / max(height, width))
    small = cv2.resize(image.pixels, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    axes.imshow(small, extent=(0, width, height, 0))
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_title(image.title[-45:], fontsize=8)
    for (x, y, w, h), name, color, is_object in image.boxes:
        draw_box(axes, np.array([x, y, x + w, y + h]), color, '-' if is_object else ':', 1.5)
        inside = y < height / 20
        axes.text(
            min(max(x, 0), width),
            max(y, 0),
            name,
            fontsize=7,
            color='white',
            verticalalignment='top' if inside else 'bottom',
            clip_on=True,
            bbox=dict(facecolor=color, linewidth=0, pad=0.8),
        )
