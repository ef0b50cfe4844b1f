"""An image and the cells of a detector in one coordinate system."""

import math

import cv2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, Normalize
from torch import Tensor

from .inspection import Inspection
from .maps import CoAttentionMaps, Levels


class ImageFrame:
    """Common coordinates of an image and the cells of a detector.

    Args:
        inspection: The detector's inspection of the image.
        maps: Co-attention of a decoder layer, for the strides and positions of its cells.
    """

    def __init__(self, inspection: Inspection, maps: CoAttentionMaps) -> None:
        self.image = inspection.image
        self.strides, self.cell_place = maps.strides, maps.cell_place
        self.input_size = inspection.input_size
        self.scale_factor = inspection.scale_factor.numpy()

    @property
    def aspect(self) -> float:
        """Height of the image divided by its width."""
        return self.image.shape[0] / self.image.shape[1]

    def pixels(self, points: Tensor) -> np.ndarray:
        """Convert pixels of the network's input, (..., 2), to pixels of the image."""
        return points.numpy() / self.scale_factor

    def rasters(self, maps: Levels) -> np.ndarray:
        """Resample the maps of all levels, (H_j, W_j) each, to one raster, (L, rows, columns).

        Cells are squares around their positions. The raster's cells are half as wide as the finest
        ones, so that no edge falls inside one. Outside a level's cells the raster is zero.
        """
        step = min(self.strides) / 2
        columns, rows = (math.ceil(side / step) for side in self.input_size)
        rasters = np.zeros((len(maps), rows, columns))
        for raster, level, stride in zip(rasters, maps, self.strides, strict=True):
            y, x = (
                (np.arange(n) + 0.5) * step / stride + 0.5 - self.cell_place
                for n in (rows, columns)
            )
            height, width = level.shape
            y, x = y[y < height].astype(int), x[x < width].astype(int)
            raster[: len(y), : len(x)] = level.numpy()[np.ix_(y, x)]
        return rasters

    def density(self, maps: Levels) -> np.ndarray:
        """Sum of the weights of all levels, per cell of the finest one, (rows, columns)."""
        areas = np.square(self.strides) / min(self.strides) ** 2
        return np.tensordot(1 / areas, self.rasters(maps), axes=1)

    def show_map(
        self, axes: Axes, raster: np.ndarray, colors: ListedColormap, norm: Normalize
    ) -> None:
        """Draw a raster, one colour per cell, over the image in pale grey."""
        grey = cv2.cvtColor(self.image, cv2.COLOR_RGB2GRAY).astype(float)
        low, high = np.percentile(grey, (1, 99))
        grey = 165 + 80 * np.clip((grey - low) / max(high - low, 1), 0, 1)
        show_image(axes, np.repeat(grey[..., None], 3, axis=-1).astype(np.uint8))
        rows, columns = raster.shape
        step = min(self.strides) / 2 / self.scale_factor
        extent = (0, columns * step[0], rows * step[1], 0)
        limits = axes.get_xlim(), axes.get_ylim()
        axes.imshow(raster, cmap=colors, norm=norm, extent=extent, interpolation='nearest')
        axes.set(xlim=limits[0], ylim=limits[1])


def show_image(axes: Axes, image: np.ndarray, alpha: float = 1.0) -> None:
    """Draw an image in its pixel coordinates, smoothly interpolated."""
    height, width = image.shape[:2]
    axes.imshow(image, extent=(0, width, height, 0), interpolation='bicubic', alpha=alpha)
    axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0))
