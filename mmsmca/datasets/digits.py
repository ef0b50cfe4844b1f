"""Handwritten digits on photographs, a detection set in COCO's format from real images.

scikit-learn ships both: 1,797 digits of 8 x 8 pixels (the test set of UCI's "Optical recognition of
handwritten digits") and two photographs. Splits share no digit. Backgrounds are crops of the
photographs: of their left halves in the training split, of their right halves in the others.
"""

import math
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np

from mmsmca.errors import UserError

from .generated_set import Drawing, GeneratedSet, crop, half

DIGITS_CLASSES = tuple('0123456789')
# Start and end of every split in scikit-learn's order, which is by writer.
DIGITS_OF_SPLIT = {'train': (0, 1197), 'val': (1197, 1497), 'tune': (1497, 1797)}

# The longer side of a digit before rotation, as a fraction of the image side.
EXTENT_RANGE = (0.12, 0.6)
MAX_ROTATION = 20.0  # degrees, either way: a nine stays a nine
CONTRAST_RANGE = (50, 200)  # between a stroke and its surroundings, in grey levels
COLOUR_JITTER = 30  # per channel, either way
PLACE_ATTEMPTS = 20
MIN_CROP = 128  # side of the crops of photographs in pixels


@dataclass
class Digits(GeneratedSet):
    """Handwritten digits on photographs; no digit hides another."""

    num_val: int = 200

    classes = DIGITS_CLASSES

    def draw_background(self, rng: np.random.RandomState, split: str) -> np.ndarray:
        """A crop of a photograph's half, uint8, (size, size, 3)."""
        photographs = _sources()[2]
        photograph = half(photographs[rng.randint(len(photographs))], split)
        side = rng.randint(MIN_CROP, min(photograph.shape[:2]) + 1)
        square = crop(rng, photograph, side)
        return cv2.resize(square, (self.size, self.size), interpolation=cv2.INTER_LINEAR)

    def draw_objects(self, drawing: Drawing) -> None:
        """Draw digits that do not overlap."""
        for _ in range(drawing.rng.randint(1, self.max_objects + 1)):
            self._draw_digit(drawing)

    def _draw_digit(self, drawing: Drawing) -> None:
        """Draw a digit that does not overlap the others, if a place for it is found."""
        rng, image = drawing.rng, drawing.pixels
        number = rng.randint(*DIGITS_OF_SPLIT[drawing.split])
        low, high = EXTENT_RANGE
        extent = self.size * low * (high / low) ** rng.uniform()
        angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
        strokes, labels, _ = _sources()
        for _ in range(PLACE_ATTEMPTS):
            ink = _place(strokes[number], self.size, extent, angle, rng.uniform(0, 1, 2))
            mask = ink >= 128
            around = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
            if drawing.leaves_visible(around, 1):
                break
        else:
            return
        colour = _draw_colour(rng, image[around].mean(axis=0))
        alpha = ink[..., None].astype(int)
        image[:] = (alpha * colour + (255 - alpha) * image) // 255
        drawing.add(int(labels[number]), mask)


@cache
def _sources() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """Digits, uint8, (1797, 8, 8), 0 to 255; their classes; the photographs, RGB."""
    try:
        from sklearn.datasets import load_digits, load_sample_images
    except ModuleNotFoundError as error:
        raise UserError(
            "the digits come with scikit-learn: pip install 'mmsmca[digits]'"
        ) from error
    digits = load_digits()
    strokes = (digits.images.astype(int) * 255 // 16).astype(np.uint8)
    return strokes, digits.target, load_sample_images().images


def _place(
    strokes: np.ndarray, size: int, extent: float, angle: float, place: np.ndarray
) -> np.ndarray:
    """A digit enlarged, rotated and placed in the image, uint8, (size, size), 255 for full ink.

    Args:
        strokes: The digit, uint8, (8, 8).
        size: Side of the image in pixels.
        extent: Side of the enlarged digit in pixels.
        angle: Rotation in degrees.
        place: Relative position (x, y) in the range where the digit fits, 0 to 1.
    """
    scale = extent / len(strokes)
    cos, sin = math.cos(math.radians(angle)) * scale, math.sin(math.radians(angle)) * scale
    reach = (abs(cos) + abs(sin)) * len(strokes) / 2
    centre = reach + place * (size - 2 * reach)
    middle = (len(strokes) - 1) / 2
    turn = np.array(
        [
            [cos, sin, centre[0] - 0.5 - (cos + sin) * middle],
            [-sin, cos, centre[1] - 0.5 - (cos - sin) * middle],
        ]
    )
    ink = cv2.warpAffine(strokes, turn, (size, size), flags=cv2.INTER_LINEAR).astype(int)
    # Enlarging blurs edges. They are made twice as steep about half ink, where the mask ends.
    return np.clip(2 * ink - 128, 0, 255).astype(np.uint8)


def _draw_colour(rng: np.random.RandomState, around: np.ndarray) -> np.ndarray:
    """A colour that is lighter or darker than its surroundings, int, (3,)."""
    contrast = rng.randint(CONTRAST_RANGE[0], CONTRAST_RANGE[1] + 1)
    grey = around.mean()
    # Towards black or white, whichever is further away.
    shift = contrast if grey < 128 else -contrast
    jitter = rng.randint(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    return np.clip(np.rint(grey + shift).astype(int) + jitter, 0, 255)
