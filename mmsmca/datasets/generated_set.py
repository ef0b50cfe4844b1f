"""A set of generated images, written in COCO's format: whole or not at all, and once.

Boxes, areas and segmentations describe the *visible* pixels of an object, as COCO's do: what
another object hides does not count. A box spans whole pixels, ``[x, y, width, height]`` with
``x + width`` one past the last column. Segmentations are uncompressed run lengths.
"""

import argparse
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from mmsmca.errors import DataError, UserError, few
from mmsmca.files import PARTIAL

# What is chosen, is chosen on tune; val is for reports.
SPLITS = ('train', 'val', 'tune')
MANIFEST = 'manifest.json'


@dataclass
class GeneratedObject:
    """One annotation of a generated image.

    Attributes:
        label: Index of its class.
        mask: Visible pixels, bool, (size, size). Never empty.
        full_area: Number of its pixels before others hid some.
        is_crowd: Whether this is a group of objects under one annotation.
    """

    label: int
    mask: np.ndarray
    full_area: int
    is_crowd: bool

    @property
    def bbox(self) -> list[int]:
        """Tight box of the visible pixels, ``[x, y, width, height]`` in pixels."""
        columns = np.flatnonzero(self.mask.any(axis=0))
        rows = np.flatnonzero(self.mask.any(axis=1))
        x, y = int(columns[0]), int(rows[0])
        return [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y]


def parser(description: str, example: str, num_val: int, size: int) -> argparse.ArgumentParser:
    """What the generators' commands have in common; pass what is parsed to :func:`generate`.

    Args:
        description: What the command does.
        example: A folder for the set.
        num_val: Default number of validation images.
        size: Default side of the images in pixels.

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out_dir', help=f'folder of the set, for example {example}')
    for name, default, text in (
        ('--train', 4000, 'number of training images'),
        ('--val', num_val, 'number of validation images'),
        ('--tune', argparse.SUPPRESS, 'number of images to choose by (default: as --val)'),
    ):
        dest = f'num_{name.removeprefix("--")}'
        parser.add_argument(name, type=int, default=default, dest=dest, metavar='N', help=text)
    parser.add_argument('--size', type=int, default=size, help='side of the images in pixels')
    parser.add_argument('--max-objects', type=int, default=3, help='most objects in an image')
    parser.add_argument('--seed', type=int, default=0, help='seed of everything random')
    return parser


def generate(make: Callable[..., bool], args: argparse.Namespace) -> None:
    """Write the set that a command asks for, and say so.

    Args:
        make: Writes the set; whether it was not there yet.
        args: Its arguments, by name.

    Raises:
        UserError: If the set cannot be made or written.
    """
    try:
        written = make(**vars(args))
    except OSError as error:  # no right to write, a full disk
        raise UserError(error) from error
    print(f'{args.out_dir}: {"written" if written else "already there, nothing to do"}')


def check_parameters(
    *, min_size: int, size: int, max_objects: int, seed: int, **num_images: int
) -> None:
    """Refuse what no set can be made with.

    Args:
        min_size: Least side of the images in pixels.
        size: Side of the images in pixels.
        max_objects: Most objects in an image.
        seed: Seed of everything random.
        num_images: Numbers of images, by the names of their parameters.

    Raises:
        UserError: If a parameter is out of its range.
    """
    at_least = [(name, value, 1) for name, value in num_images.items()]
    at_least += [('size', size, min_size), ('max_objects', max_objects, 1)]
    for name, value, least in at_least:
        if value < least:
            raise UserError(f'{name} is {value}; it must be at least {least}')
    if not 0 <= seed < 2**32:
        raise UserError(f'seed is {seed}; it must be from 0 to {2**32 - 1}')


def write_set(
    out_dir: str | Path,
    manifest: dict[str, Any],
    classes: Sequence[str],
    draw: Callable[[str, int], tuple[np.ndarray, list[GeneratedObject]]],
) -> bool:
    """Write a generated set to ``out_dir``, or do nothing if the very same set is already there.

    Args:
        out_dir: Folder of the set; parents are created.
        manifest: What the set is made from; ``num_train``, ``num_val`` and ``num_tune`` are among
            it.
        classes: Names of the classes.
        draw: Image and objects, given split and number of the image within it.

    Returns:
        True if the set was written, False if it was there already.

    Raises:
        DataError: If ``out_dir`` holds a set with another manifest, or anything else.
    """
    out_dir = Path(out_dir)
    if _is_made(out_dir, manifest):
        return False

    unfinished = out_dir.with_name(out_dir.name + PARTIAL)
    shutil.rmtree(unfinished, ignore_errors=True)
    (unfinished / 'annotations').mkdir(parents=True)
    for split in SPLITS:
        _write_split(unfinished, split, manifest[f'num_{split}'], classes, draw)
    (unfinished / MANIFEST).write_text(json.dumps(manifest, indent=2) + '\n')
    shutil.rmtree(out_dir, ignore_errors=True)
    unfinished.rename(out_dir)
    return True


def _image_name(index: int) -> str:
    """File name of an image, by its number within its split."""
    return f'{index:06d}.png'


def _is_made(out_dir: Path, manifest: dict) -> bool:
    """Whether ``out_dir`` holds all of the set; refuses to give anything else up for it."""
    if not out_dir.exists() or (out_dir.is_dir() and not any(out_dir.iterdir())):
        return False
    remedy = 'delete it or choose another folder'
    manifest_file = out_dir / MANIFEST
    if not manifest_file.is_file():
        raise DataError(f'{out_dir} exists and is no generated set: {remedy}')
    found = json.loads(manifest_file.read_text())
    if found != manifest:
        differences = ', '.join(
            f'{key} {found.get(key)} (asked for: {value})'
            for key, value in manifest.items()
            if found.get(key) != value
        )
        raise DataError(f'{out_dir} holds a set with {differences}: {remedy}')
    files = {MANIFEST}
    for split in SPLITS:
        files.add(f'annotations/instances_{split}.json')
        files.update(f'{split}/{_image_name(index)}' for index in range(manifest[f'num_{split}']))
    there = {p.relative_to(out_dir).as_posix() for p in out_dir.rglob('*') if not p.is_dir()}
    if files <= there:
        return True
    if there > files & there:
        raise DataError(
            f'{out_dir} lacks {len(files - there)} files of its set ({few(sorted(files - there))}) '
            f'and holds others, which making it again would delete: {few(sorted(there - files))}. '
            'Move those away, or choose another folder'
        )
    return False


def _write_split(
    out_dir: Path,
    split: str,
    count: int,
    classes: Sequence[str],
    draw: Callable[[str, int], tuple[np.ndarray, list[GeneratedObject]]],
) -> None:
    folder = out_dir / split
    folder.mkdir()
    images: list[dict] = []
    annotations: list[dict] = []
    for index in track(range(count), description=f'{split} images'):
        pixels, objects = draw(split, index)
        size = len(pixels)
        name = _image_name(index)
        if not cv2.imwrite(str(folder / name), pixels[..., ::-1]):
            raise OSError(f'cannot write {folder / name}')
        images.append({'id': index, 'file_name': name, 'height': size, 'width': size})
        for shape in objects:
            annotations.append(
                {
                    'id': len(annotations) + 1,  # COCO's evaluation takes 0 for "no match"
                    'image_id': index,
                    'category_id': shape.label + 1,
                    'bbox': shape.bbox,
                    'area': int(shape.mask.sum()),
                    'segmentation': {'size': [size, size], 'counts': _run_lengths(shape.mask)},
                    'iscrowd': int(shape.is_crowd),
                }
            )
    categories = [{'id': i, 'name': name} for i, name in enumerate(classes, start=1)]
    content = {'images': images, 'annotations': annotations, 'categories': categories}
    (out_dir / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))


def _run_lengths(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed run lengths: columns first, beginning with the zeros."""
    flat = mask.ravel(order='F')
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return [0, *runs] if flat[0] else runs
