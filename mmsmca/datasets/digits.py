"""Handwritten digits on photographs, a detection set in COCO's format from real images.

scikit-learn ships both: 1,797 digits of 8 x 8 pixels (the test set of UCI's "Optical recognition of
handwritten digits") and two photographs. Splits share no digit. Training images have crops of the
photographs' left halves behind them, those for validation and to choose by of the right halves.

Every image is drawn from a random generator of its own, seeded with (seed, split, index).
"""

import math
from functools import cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from mmsmca.errors import UserError

from .generated_set import SPLITS, GeneratedObject, check_parameters, write_set

DIGITS_CLASSES = tuple('0123456789')
# In the order of scikit-learn, which is the writers': first and last of every split.
DIGITS_OF_SPLIT = {'train': (0, 1197), 'val': (1197, 1497), 'tune': (1497, 1797)}

EMPTY_SHARE = 0.03
# The longer side of a digit before rotation, as a fraction of the image side.
EXTENT_RANGE = (0.12, 0.6)
MAX_ROTATION = 20.0  # degrees, either way: a nine stays a nine
CONTRAST_RANGE = (50, 200)  # of a stroke to what is around it, in grey levels
COLOUR_JITTER = 30  # per channel, either way
PLACE_ATTEMPTS = 20
MIN_CROP = 128  # side of the crops of photographs in pixels
MIN_SIZE = 64
FORMAT_VERSION = 1


def make_digits(
    out_dir: str | Path,
    num_train: int = 4000,
    num_val: int = 200,
    num_tune: int | None = None,
    size: int = 192,
    max_objects: int = 3,
    seed: int = 0,
) -> bool:
    """Write the set to ``out_dir``, or do nothing if the very same set is already there.

    The files are those of :func:`.shapes.make_shapes`.

    Args:
        out_dir: Folder of the set; parents are created.
        num_train: Number of training images, at least 1.
        num_val: Number of validation images, at least 1.
        num_tune: Number of images to choose by, at least 1. As many as there are validation images
            if None.
        size: Side of the square images in pixels, at least 64.
        max_objects: Most digits in an image, at least 1.
        seed: Seed of everything random, 0 to 2**32 - 1.

    Returns:
        True if the set was written, False if it was there already.

    Raises:
        UserError: If a parameter is out of its range, or scikit-learn is not installed.
        DataError: If ``out_dir`` holds a set made with other parameters, or anything else.
    """
    parameters: dict[str, Any] = {
        'num_train': num_train,
        'num_val': num_val,
        'num_tune': num_val if num_tune is None else num_tune,
        'size': size,
        'max_objects': max_objects,
    }
    check_parameters(min_size=MIN_SIZE, seed=seed, **parameters)
    manifest = {'set': 'digits', 'format_version': FORMAT_VERSION, **parameters, 'seed': seed}
    return write_set(
        out_dir, manifest, DIGITS_CLASSES, partial(draw_image, size, max_objects, seed)
    )


def draw_image(
    size: int, max_objects: int, seed: int, split: str, index: int
) -> tuple[np.ndarray, list[GeneratedObject]]:
    """Draw one image of the set.

    Args:
        size: Side of the image in pixels.
        max_objects: Most digits in the image.
        seed: Seed of the set.
        split: One of ``SPLITS``.
        index: Number of the image within its split.

    Returns:
        The image, uint8, (size, size, 3), RGB; and its digits, none of which hides another.
    """
    # RandomState's stream is frozen by NumPy's compatibility policy; Generator's is not.
    rng = np.random.RandomState([seed, SPLITS.index(split), index])
    image = _draw_background(rng, size, split)
    objects: list[GeneratedObject] = []
    if rng.uniform() < EMPTY_SHARE:
        return image, objects
    for _ in range(rng.randint(1, max_objects + 1)):
        _add_digit(rng, image, objects, split)
    return image, objects


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


def _draw_background(rng: np.random.RandomState, size: int, split: str) -> np.ndarray:
    """A crop of a photograph's half, mirrored or not, uint8, (size, size, 3)."""
    photographs = _sources()[2]
    photograph = photographs[rng.randint(len(photographs))]
    middle = photograph.shape[1] // 2
    half = photograph[:, :middle] if split == 'train' else photograph[:, middle:]
    side = rng.randint(MIN_CROP, min(half.shape[:2]) + 1)
    y, x = (rng.randint(0, length - side + 1) for length in half.shape[:2])
    crop = half[y : y + side, x : x + side]
    if rng.randint(2):
        crop = crop[:, ::-1]
    return cv2.resize(np.ascontiguousarray(crop), (size, size), interpolation=cv2.INTER_LINEAR)


def _add_digit(
    rng: np.random.RandomState, image: np.ndarray, objects: list[GeneratedObject], split: str
) -> None:
    """Draw a digit beside the others, if a place for it is found."""
    size = len(image)
    number = rng.randint(*DIGITS_OF_SPLIT[split])
    low, high = EXTENT_RANGE
    extent = size * low * (high / low) ** rng.uniform()
    angle = rng.uniform(-MAX_ROTATION, MAX_ROTATION)
    strokes, labels, _ = _sources()
    for _ in range(PLACE_ATTEMPTS):
        ink = _place(strokes[number], size, extent, angle, rng.uniform(0, 1, 2))
        mask = ink >= 128
        around = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)).astype(bool)
        if not any((shape.mask & around).any() for shape in objects):
            break
    else:
        return
    colour = _draw_colour(rng, image[around].mean(axis=0))
    alpha = ink[..., None].astype(int)
    image[:] = (alpha * colour + (255 - alpha) * image) // 255
    objects.append(GeneratedObject(int(labels[number]), mask, int(mask.sum()), is_crowd=False))


def _place(
    strokes: np.ndarray, size: int, extent: float, angle: float, place: np.ndarray
) -> np.ndarray:
    """A digit enlarged, turned and put into the image, uint8, (size, size), 255 for full ink.

    Args:
        strokes: The digit, uint8, (8, 8).
        size: Side of the image in pixels.
        extent: Side of the enlarged digit in pixels.
        angle: Degrees.
        place: Where it lies between both ends, x and y, 0 to 1.
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
    # Enlarged, edges are blurred: twice as steep about the half, they are where the mask ends.
    return np.clip(2 * ink - 128, 0, 255).astype(np.uint8)


def _draw_colour(rng: np.random.RandomState, around: np.ndarray) -> np.ndarray:
    """A colour that is lighter or darker than what is around it, int, (3,)."""
    contrast = rng.randint(CONTRAST_RANGE[0], CONTRAST_RANGE[1] + 1)
    grey = around.mean()
    # To the side that has more room.
    shift = contrast if grey < 128 else -contrast
    jitter = rng.randint(-COLOUR_JITTER, COLOUR_JITTER + 1, 3)
    return np.clip(np.rint(grey + shift).astype(int) + jitter, 0, 255)
