"""A generated detection set in COCO's format, for experiments without COCO.

Drawing uses integer arithmetic (outlines by OpenCV's fixed-point polygon fill), so pixels do not
depend on the machine.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import cv2
import numpy as np

from .generated_set import Drawing, GeneratedSet

SHAPES_CLASSES = ('disc', 'square', 'triangle', 'star', 'cross', 'ring')

# Extent: the longer side of an object's box before occlusion, as a fraction of the image side.
EXTENT_RANGE = (0.09, 0.9)
TINY_EXTENT_RANGE = (0.03, 0.05)
TINY_SHARE = 0.03
CROWD_SHARE = 0.03
CROWD_EXTENT_RANGE = (0.25, 0.5)
CROWD_MEMBERS = (6, 10)
# Share of every object that stays visible, and number of attempts to find a place that allows it.
MIN_VISIBLE = 0.5
PLACE_ATTEMPTS = 20
MAX_ROTATION = 30.0  # degrees, either way
MIN_ASPECT = 0.7

# Colour (RGB) and texture of each class, which identify it as well as its outline does.
CLASS_LOOKS = {
    'disc': ((220, 50, 45), 'plain'),
    'square': ((50, 90, 225), 'checks'),
    'triangle': ((50, 175, 70), 'columns'),
    'star': ((240, 205, 40), 'dots'),
    'cross': ((190, 60, 200), 'diagonals'),
    'ring': ((60, 210, 215), 'rows'),
}
COLOUR_JITTER = 25  # per channel, either way
BLOTCHES = ((3, 40), (8, 30), (24, 20))  # of the background: cells per side, amplitude

SUBPIXEL_BITS = 4


@dataclass
class Shapes(GeneratedSet):
    """Shapes on blotches; a crowd does not count towards ``max_objects``."""

    min_size: ClassVar[int] = 32

    size: int = 128

    classes = SHAPES_CLASSES

    def draw_background(self, rng: np.random.RandomState, split: str) -> np.ndarray:
        """Blotches of several sizes in muted colours, uint8, (size, size, 3)."""
        image = np.zeros((self.size, self.size, 3), int) + rng.randint(60, 180)
        for cells, amplitude in BLOTCHES:
            grey = rng.randint(-amplitude, amplitude + 1, (cells + 1, cells + 1, 1))
            tint = rng.randint(-amplitude // 3, amplitude // 3 + 1, (cells + 1, cells + 1, 3))
            image += _interpolate(grey + tint, self.size)
        return np.clip(image, 0, 255).astype(np.uint8)

    def draw_objects(self, drawing: Drawing) -> None:
        """Draw shapes, and in a few images a crowd behind them."""
        if drawing.rng.uniform() < CROWD_SHARE:
            self._draw_object(drawing, is_crowd=True)
        for _ in range(drawing.rng.randint(1, self.max_objects + 1)):
            self._draw_object(drawing, is_crowd=False)

    def _draw_object(self, drawing: Drawing, is_crowd: bool) -> None:
        """Draw an object or a crowd in front of the others, if a place for it is found."""
        rng = drawing.rng
        label = rng.randint(len(SHAPES_CLASSES))
        if is_crowd:
            extent_range = CROWD_EXTENT_RANGE
        elif rng.uniform() < TINY_SHARE:
            extent_range = TINY_EXTENT_RANGE
        else:
            extent_range = EXTENT_RANGE
        extent = self.size * _log_uniform(rng, *extent_range)
        draw_mask = _draw_crowd_mask if is_crowd else _draw_mask
        for _ in range(PLACE_ATTEMPTS):
            mask = draw_mask(rng, SHAPES_CLASSES[label], self.size, extent)
            if drawing.leaves_visible(mask, MIN_VISIBLE):
                break
        else:
            return
        drawing.add(label, mask, is_crowd)
        look = _draw_look(rng, *CLASS_LOOKS[SHAPES_CLASSES[label]], self.size, extent)
        drawing.pixels[mask] = look[mask]


def _draw_look(
    rng: np.random.RandomState,
    base: tuple[int, int, int],
    texture: str,
    size: int,
    extent: float,
) -> np.ndarray:
    """An image filled with a jittered colour and a texture, uint8, (size, size, 3)."""
    jitter = rng.randint(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    colour = np.clip(np.array(base) + jitter, 0, 255)
    period = max(2, round(extent / rng.randint(4, 8)))
    pattern = _draw_texture(rng, texture, size, period)
    shades = np.stack((colour, colour * rng.randint(40, 66) // 100)).astype(np.uint8)
    return shades[pattern]


def _log_uniform(rng: np.random.RandomState, low: float, high: float) -> float:
    """A log-uniform random number: all octaves are equally likely."""
    return low * (high / low) ** rng.uniform()


def _draw_mask(rng: np.random.RandomState, name: str, size: int, extent: float) -> np.ndarray:
    """Pixels of one object at a random place inside the image, bool, (size, size)."""
    angle = math.radians(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    squeeze = rng.uniform(MIN_ASPECT, 1.0)
    stretch = np.diag((1.0, squeeze) if rng.randint(2) else (squeeze, 1.0))
    cos, sin = math.cos(angle), math.sin(angle)
    contours = [points @ stretch @ [[cos, sin], [-sin, cos]] for points in OUTLINES[name]]
    low, high = contours[0].min(axis=0), contours[0].max(axis=0)
    scale = (extent - 1) / (high - low).max()  # the fill includes the pixels of both ends
    origin = rng.uniform(0, size - 1 - (high - low) * scale)
    fixed_point = [
        np.rint(((points - low) * scale + origin) * 2**SUBPIXEL_BITS).astype(np.int32)
        for points in contours
    ]
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, fixed_point, 1, shift=SUBPIXEL_BITS)
    return mask.astype(bool)


def _draw_crowd_mask(rng: np.random.RandomState, name: str, size: int, extent: float) -> np.ndarray:
    """Pixels of a group of small objects of one class, together about ``extent`` wide."""
    region = math.ceil(extent)
    group = np.zeros((region, region), bool)
    for _ in range(rng.randint(CROWD_MEMBERS[0], CROWD_MEMBERS[1] + 1)):
        group |= _draw_mask(rng, name, region, extent * rng.uniform(0.2, 0.35))
    x, y = rng.randint(0, size - region + 1, size=2)
    mask = np.zeros((size, size), bool)
    mask[y : y + region, x : x + region] = group
    return mask


def _draw_texture(rng: np.random.RandomState, name: str, size: int, period: int) -> np.ndarray:
    """A pattern of zeros and ones, int, (size, size)."""
    shift_x, shift_y = rng.randint(0, period, 2)
    y, x = np.mgrid[shift_y : shift_y + size, shift_x : shift_x + size]
    dx, dy = x % period - period // 2, y % period - period // 2
    patterns = {
        'plain': np.zeros_like(x),
        'columns': x * 2 // period % 2,
        'rows': y * 2 // period % 2,
        'diagonals': (x + y) * 2 // period % 2,
        'checks': (x * 2 // period + y * 2 // period) % 2,
        # With a radius of a third of the period.
        'dots': (9 * (dx * dx + dy * dy) < period * period).astype(int),
    }
    return patterns[name]


def _interpolate(grid: np.ndarray, size: int) -> np.ndarray:
    """Bilinear resizing in integers: (cells + 1, cells + 1, channels) to (size, size, channels)."""
    cells = len(grid) - 1
    cell, fraction = np.divmod(np.arange(size) * cells, size)
    grid = grid[cell] * (size - fraction)[:, None, None] + grid[cell + 1] * fraction[:, None, None]
    grid = grid[:, cell] * (size - fraction)[:, None] + grid[:, cell + 1] * fraction[:, None]
    return grid // size**2


def _regular(corners: int, start: float = -90.0, radii: tuple[float, ...] = (1.0,)) -> np.ndarray:
    """Corners at equal angles from ``start`` (degrees), with ``radii`` in turn, (corners, 2)."""
    angles = np.radians(start + np.arange(corners) * 360 / corners)
    lengths = np.resize(radii, corners)
    return np.stack((lengths * np.cos(angles), lengths * np.sin(angles)), axis=1)


_DISC = _regular(48)
_ARM = 0.36
# Contours of every class, (points, 2), x right and y down; the first one is the outer.
OUTLINES = {
    'disc': [_DISC],
    'square': [_regular(4, start=45)],
    'triangle': [_regular(3)],
    'star': [_regular(10, radii=(1.0, 0.42))],
    'cross': [
        np.array(
            [(_ARM, _ARM), (1, _ARM), (1, -_ARM), (_ARM, -_ARM), (_ARM, -1), (-_ARM, -1)]
            + [(-_ARM, -_ARM), (-1, -_ARM), (-1, _ARM), (-_ARM, _ARM), (-_ARM, 1), (_ARM, 1)]
        )
    ],
    'ring': [_DISC, 0.55 * _DISC],
}
