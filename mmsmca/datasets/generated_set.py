"""Generated detection sets, written in COCO's format: whole or not at all, and only once.

Boxes, areas and segmentations describe the *visible* pixels of an object, as COCO's do: what
another object hides does not count. A box spans whole pixels, ``[x, y, width, height]`` with
``x + width`` one past the last column. Segmentations are uncompressed run-length encodings.
"""

import argparse
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from rich.progress import track

from mmsmca.errors import DataError, UserError
from mmsmca.files import PARTIAL, exclusive_lock, read_json

# All choices are made on tune; val is for reported results.
SPLITS = ('train', 'val', 'tune')
MANIFEST = 'manifest.json'
EMPTY_SHARE = 0.03
# Parameters of a set that are at least 1, the size at least `min_size`.
COUNTS = ('num_train', 'num_val', 'num_tune', 'size', 'max_objects')
HELP = dict(
    num_train='number of training images',
    num_val='number of validation images',
    num_tune='number of images for model selection; None: as many as for validation',
    size='side length of the images in pixels',
    max_objects='maximum number of objects in an image',
    seed='random seed',
    objects='folder with a subfolder of cut-out pictures per class; None: a Debian package',
    backgrounds='folder of photographs; None: Debian packages',
    cache="folder with Debian's packages, unpacked",
)


@dataclass
class GeneratedObject:
    """One annotation of a generated image.

    Attributes:
        label: Index of its class.
        mask: Visible pixels, bool, (size, size). Never empty.
        full_area: Number of its pixels, including those hidden by other objects.
        is_crowd: Whether this is a group of objects under one annotation.
    """

    label: int
    mask: np.ndarray
    full_area: int
    is_crowd: bool

    @property
    def bbox(self) -> list[int]:
        """Tight box of the visible pixels, ``[x, y, width, height]`` in pixels."""
        return list(cv2.boundingRect(self.mask.astype(np.uint8)))


@dataclass
class Drawing:
    """An image that is being drawn.

    Attributes:
        rng: Random generator of the image.
        split: One of ``SPLITS``.
        pixels: (size, size, 3), RGB: uint8, or float32 from 0 to 1 until it is finished.
        objects: Objects in the image, from back to front.
    """

    rng: np.random.RandomState
    split: str
    pixels: np.ndarray
    objects: list[GeneratedObject] = field(default_factory=list)

    def leaves_visible(self, mask: np.ndarray, share: float) -> bool:
        """Whether at least this share of every object stays visible behind a new object's mask."""
        return all((x.mask & ~mask).sum() >= share * x.full_area for x in self.objects)

    def add(self, label: int, mask: np.ndarray, is_crowd: bool = False) -> None:
        """Add an object in front of the others; the caller paints its pixels."""
        for other in self.objects:
            other.mask &= ~mask
        self.objects.append(GeneratedObject(label, mask, int(mask.sum()), is_crowd))


@dataclass
class GeneratedSet(ABC):
    """Base class of generated sets: their parameters, and how they are drawn and written.

    Every image has its own random generator, seeded with (seed, split, index), so the first N
    images of a split do not depend on their total number.

    Attributes:
        num_train: Number of training images, at least 1.
        num_val: Number of validation images, at least 1.
        num_tune: Number of images for tuning, so that validation images stay unseen, at least 1.
            Defaults to None: the number of validation images.
        size: Side of the square images in pixels, at least ``min_size``.
        max_objects: Maximum number of objects per image, at least 1.
        seed: Random seed, 0 to 2**32 - 1. Defaults to 0.

    Raises:
        UserError: If a value is out of range.
    """

    min_size: ClassVar[int] = 64
    # Increased whenever the same parameters give different files, so that an old set is not reused.
    format_version: ClassVar[int] = 1

    num_train: int = 4000
    num_val: int = 300
    num_tune: int | None = None
    size: int = 192
    max_objects: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.num_tune is None:
            self.num_tune = self.num_val
        for name, value in self.numbers.items():
            least = self.min_size if name == 'size' else 1
            if value < least:
                raise UserError(f'{name} is {value}; it must be at least {least}')
        if not 0 <= self.seed < 2**32:
            raise UserError(f'seed is {self.seed}; it must be from 0 to {2**32 - 1}')

    @property
    def numbers(self) -> dict[str, Any]:
        """Numbers of images, their size, and the maximum number of objects, by name."""
        return {name: getattr(self, name) for name in COUNTS}

    @property
    def manifest(self) -> dict[str, Any]:
        """What identifies this set, as written beside the images."""
        name = {'set': type(self).__name__.lower(), 'format_version': self.format_version}
        return {**name, **self.numbers, 'seed': self.seed}

    @property
    @abstractmethod
    def classes(self) -> Sequence[str]:
        """Names of the classes."""

    @abstractmethod
    def draw_background(self, rng: np.random.RandomState, split: str) -> np.ndarray:
        """Draw the background of an image, the initial :attr:`Drawing.pixels`."""

    @abstractmethod
    def draw_objects(self, drawing: Drawing) -> None:
        """Draw 1 to ``max_objects`` objects, or fewer if no place is found for some."""

    def draw(self, split: str, index: int) -> tuple[np.ndarray, list[GeneratedObject]]:
        """Draw one image of the set.

        Args:
            split: One of ``SPLITS``.
            index: Number of the image within its split.

        Returns:
            The image, uint8, (size, size, 3), RGB; and its objects, from back to front.
        """
        # RandomState's stream is frozen by NumPy's compatibility policy; Generator's is not.
        rng = np.random.RandomState([self.seed, SPLITS.index(split), index])
        drawing = Drawing(rng, split, self.draw_background(rng, split))
        if rng.uniform() >= EMPTY_SHARE:
            self.draw_objects(drawing)
        if drawing.pixels.dtype == np.uint8:
            return drawing.pixels, drawing.objects
        return np.rint(drawing.pixels * 255).astype(np.uint8), drawing.objects

    def write(self, out_dir: str | Path) -> bool:
        """Write the set to ``out_dir``, or do nothing if the same set is already there.

        The folder gets ``{train,val,tune}/*.png``, ``annotations/instances_{train,val,tune}.json``
        and a manifest with the parameters. Everything is first written to
        ``<out_dir>.mmsmca.partial`` and renamed at the end, so a set under its final name is
        complete. Leftovers of an interrupted call are discarded.

        Args:
            out_dir: Folder of the set; parents are created.

        Returns:
            True if the set was written, False if it was there already.

        Raises:
            UserError: If the sources of the set cannot be obtained, or another process writes it.
            DataError: If ``out_dir`` holds anything else.
        """
        out_dir = Path(out_dir)
        manifest = self.manifest
        if _is_made(out_dir, manifest):
            return False
        unfinished = out_dir.with_name(out_dir.name + PARTIAL)
        unfinished.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(unfinished):
            if _is_made(out_dir, manifest):  # By a process that has just ended.
                unfinished.rmdir()
                return False
            for leftover in unfinished.iterdir():
                shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
            (unfinished / 'annotations').mkdir()
            for split in SPLITS:
                content = self._write_images(unfinished / split, manifest[f'num_{split}'])
                (unfinished / f'annotations/instances_{split}.json').write_text(json.dumps(content))
            (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + '\n')
            unfinished.rename(out_dir)
        return True

    def _write_images(self, folder: Path, count: int) -> dict[str, list[dict]]:
        """Write the images of a split to its folder, and return their annotations."""
        folder.mkdir()
        images: list[dict] = []
        annotations: list[dict] = []
        for index in track(range(count), description=f'{folder.name} images'):
            pixels, objects = self.draw(folder.name, index)
            name = f'{index:06d}.png'
            if not cv2.imwrite(str(folder / name), pixels[..., ::-1]):
                raise OSError(f'cannot write {folder / name}')
            height, width = pixels.shape[:2]
            images.append({'id': index, 'file_name': name, 'height': height, 'width': width})
            for shape in objects:
                segmentation = {'size': [height, width], 'counts': _run_lengths(shape.mask)}
                annotations.append(
                    {
                        'id': len(annotations) + 1,  # COCO's evaluation reads 0 as "no match"
                        'image_id': index,
                        'category_id': shape.label + 1,
                        'bbox': shape.bbox,
                        'area': int(shape.mask.sum()),
                        'segmentation': segmentation,
                        'iscrowd': int(shape.is_crowd),
                    }
                )
        categories = [{'id': i, 'name': name} for i, name in enumerate(self.classes, start=1)]
        return {'images': images, 'annotations': annotations, 'categories': categories}


def crop(rng: np.random.RandomState, photograph: np.ndarray, side: int) -> np.ndarray:
    """A square crop of a photograph at a random place, randomly mirrored, (side, side, 3)."""
    y, x = (rng.randint(0, length - side + 1) for length in photograph.shape[:2])
    square = photograph[y : y + side, x : x + side]
    return np.ascontiguousarray(square[:, ::-1] if rng.randint(2) else square)


def half(photograph: np.ndarray, split: str) -> np.ndarray:
    """The half of a photograph behind the objects of a split: left for training, else right."""
    middle = photograph.shape[1] // 2
    return photograph[:, :middle] if split == 'train' else photograph[:, middle:]


def generate(kind: type[GeneratedSet], description: str | None, example: str) -> None:
    """Write the set that a command line asks for, and report it.

    Args:
        kind: Class of the set, whose fields are the options.
        description: What the command does.
        example: Example of a folder for the set.

    Raises:
        UserError: If the set cannot be made or written.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out_dir', help=f'folder for the data set, for example {example}')
    for option in fields(kind):
        name = '--' + option.name.removeprefix('num_').replace('_', '-')
        parser.add_argument(
            name,
            dest=option.name,
            type=int if option.name in (*COUNTS, 'seed') else Path,
            default=option.default,
            help=HELP[option.name],
        )
    parameters = vars(parser.parse_args())
    out_dir = parameters.pop('out_dir')
    try:
        written = kind(**parameters).write(out_dir)
    except OSError as error:  # no write permission, a full disk
        raise UserError(error) from error
    print(f'{out_dir}: {"written" if written else "already there, nothing to do"}')


def _is_made(out_dir: Path, manifest: dict) -> bool:
    """Whether ``out_dir`` holds the set; refuses to replace anything else."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    remedy = 'delete it or choose another folder'
    made = read_json(out_dir / MANIFEST)
    if made is None:
        raise DataError(f'{out_dir} exists and is not a generated set: {remedy}')
    differences = [
        f'{key} {made[key]} (asked for: {value})'
        for key, value in manifest.items()
        if made.get(key, value) != value
    ]
    if differences:
        raise DataError(f'{out_dir} holds a set with {", ".join(differences)}: {remedy}')
    return True


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: in column-major order, starting with zeros."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return [0, *runs] if flat[0] else runs
