"""Checks of COCO annotation files for what MMDetection would crash on or silently ignore.

Anything that would end a run with a traceback, or assign boxes to the wrong image or class, is
refused. Boxes that MMDetection leaves out of training (outside their image, or less than a pixel
wide or high) occur in COCO too: a warning gives their number.
"""

import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmsmca.errors import DataError, shorten


@dataclass(frozen=True)
class CocoFile:
    """The parts of an annotation file that the checks need; the rest, up to gigabytes, is freed.

    Attributes:
        categories: Names of the categories, in the order of the file.
        file_names: File names of the images.
        shorter_sides: Shorter side of every image in pixels, by image id.
        has_annotations: Whether there is an annotation that MMDetection trains on.
        has_iscrowd: Whether every annotation has the key ``iscrowd``.
        unusable_ids: Annotation ids that are not positive integers, which evaluations misread.
        string_ids: Lists with string ids: "images", "categories", "images and categories" or ''.
        boxed: Ids of the images with any annotation of a category, by category name.
        counts: Numbers of trainable objects (in the image, no crowd), by category name and image.
    """

    categories: tuple[str, ...]
    file_names: tuple[str, ...]
    shorter_sides: dict[int | str, float]
    has_annotations: bool
    has_iscrowd: bool
    unusable_ids: tuple[int | float | str, ...]
    string_ids: str
    boxed: dict[str, set[int | str]]
    counts: dict[str, Counter[int | str]]

    @property
    def image_ids(self) -> set[int | str]:
        """Ids of the images."""
        return set(self.shorter_sides)

    def boxed_images(self, classes: Iterable[str]) -> set[int | str]:
        """Ids of the images with an annotation of any of these classes."""
        return self.image_ids & {i for name in classes for i in self.boxed.get(name, ())}

    def objects(self, classes: Iterable[str]) -> Counter[int | str]:
        """Numbers of trainable objects of these classes, by image."""
        total: Counter[int | str] = Counter()
        for name in classes:
            total.update(self.counts.get(name, {}))
        return total


def read_coco(path: str, key: str) -> CocoFile:
    """Read and check an annotation file.

    Args:
        path: The file.
        key: Config key of the file's user, such as ``train_dataloader.dataset``, for messages.

    Returns:
        The parts that the other checks need. A warning names annotations that are skipped.

    Raises:
        DataError: If it is not an annotation file in COCO's format, or is inconsistent.
    """
    where = f'{key}.ann_file: {path}'
    content = _read_json(path, where)
    images = _entries(where, content, 'images')
    categories = _entries(where, content, 'categories')
    # COCO's files for its test images have no annotations.
    annotations = _entries(where, content, 'annotations') if 'annotations' in content else []
    if not images:
        raise DataError(f'{where} lists no images. Specify an annotation file that does.')
    names = {category['id']: category['name'] for category in categories}
    unknown = {entry['category_id'] for entry in annotations} - names.keys()
    if unknown:
        raise DataError(
            f'{where} uses the category ids {shorten(sorted(unknown, key=str))}, which are not in '
            "its 'categories' list. Add them there."
        )
    used = _check_boxes(where, annotations, {i['id']: i for i in images})
    boxed: dict[str, set[int | str]] = {name: set() for name in names.values()}
    counts: dict[str, Counter[int | str]] = {name: Counter() for name in names.values()}
    for entry in annotations:
        boxed[names[entry['category_id']]].add(entry['image_id'])
    for entry in used:
        if not entry.get('iscrowd'):
            counts[names[entry['category_id']]][entry['image_id']] += 1
    lists = dict(images=images, categories=categories)
    strings = [key for key, found in lists.items() if any(isinstance(e['id'], str) for e in found)]
    ids = [entry['id'] for entry in annotations]
    return CocoFile(
        categories=tuple(category['name'] for category in categories),
        file_names=tuple(image['file_name'] for image in images),
        shorter_sides={image['id']: min(image['height'], image['width']) for image in images},
        has_annotations=bool(used),
        has_iscrowd=all('iscrowd' in entry for entry in annotations),
        unusable_ids=tuple(i for i in ids if not (isinstance(i, int) and i > 0)),
        string_ids=' and '.join(strings),
        boxed=boxed,
        counts=counts,
    )


def _is_number(value: object) -> bool:
    # A bool is an int in Python, but not a number in JSON.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_box(value: object) -> bool:
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


class Kind(NamedTuple):
    """Values that a key may have: their description, and a test for them."""

    words: str
    fits: Callable[[Any], bool]


ID = Kind('a number or a string', lambda value: isinstance(value, str) or _is_number(value))
NAME = Kind('a name', lambda value: isinstance(value, Hashable))
PATH = Kind('a path inside the image folder', lambda value: isinstance(value, str) and value != '')
PIXELS = Kind('a positive number of pixels', lambda value: _is_number(value) and value > 0)
BOX = Kind('four finite numbers: x, y, width, height in pixels', _is_box)
AREA = Kind('a finite number', _is_number)
# Keys that every entry of a list must have.
LISTS = {
    'images': dict(id=ID, file_name=PATH, height=PIXELS, width=PIXELS),
    'categories': dict(id=ID, name=NAME),
    'annotations': dict(id=ID, image_id=ID, category_id=ID, bbox=BOX, area=AREA),
}


def _read_json(path: str, where: str) -> Any:
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        if isinstance(error, UnicodeDecodeError) or 'BOM' in str(error):
            raise DataError(
                f'{where} is not plain UTF-8, as JSON must be: it begins with a byte order mark or '
                'uses another encoding. Save it as UTF-8 without a byte order mark.'
            ) from error
        raise DataError(
            f'{where} cannot be read as JSON ({error}). '
            'Restore the file; it may be an incomplete copy.'
        ) from error


def duplicates(names: Iterable[Hashable]) -> list:
    """Names that occur more than once, in order of first occurrence."""
    return [name for name, count in Counter(names).items() if count > 1]


def _entries(where: str, content: object, name: str) -> list[dict]:
    """One of the lists of a file, after checking its entries against :data:`LISTS`."""
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise DataError(
            f"{where} is not a COCO annotation file: it has no list '{name}'. "
            'Specify an instances file in COCO format, or convert yours to it.'
        )
    for i, entry in enumerate(found):
        lacking = sorted(LISTS[name].keys() - (entry if isinstance(entry, dict) else {}).keys())
        if lacking:
            raise DataError(
                f'{where} is not a COCO annotation file: {name}[{i}] has no '
                f"'{lacking[0]}'. Add it to every entry of '{name}'."
            )
        for key, kind in LISTS[name].items():
            if not kind.fits(entry[key]):
                raise DataError(
                    f'{where}: {name}[{i}].{key} is {entry[key]!r} (id {entry["id"]}), but must be '
                    f'{kind.words}. Correct the file, or remove the entry.'
                )
    repeated = duplicates(entry['id'] for entry in found)
    if repeated:
        raise DataError(
            f"{where} has several entries in '{name}' with the same id: {shorten(repeated)}. All "
            'but the last would be lost. Give each a unique id.'
        )
    return found


def _check_boxes(where: str, annotations: list[dict], images: dict[int | str, dict]) -> list[dict]:
    """Refuse boxes in other formats, warn about boxes that are skipped, and return the others."""
    orphans, empty, used = [], [], []
    corners = corner_areas = beyond = fractions = 0
    for entry in annotations:
        box = entry['bbox']
        image = images.get(entry['image_id'])
        if image is None:
            orphans.append(entry['id'])
            continue
        x, y, w, h = box
        fractions += 0 < max(w, h) <= max(box) <= 1 < min(image['width'], image['height'])
        if x < w <= image['width'] + 1 and y < h <= image['height'] + 1:
            corners += 1
            corner_areas += abs((w - x) * (h - y) - entry['area']) < 1 < abs(w * h - entry['area'])
        beyond += x + w > image['width'] + 1 or y + h > image['height'] + 1
        # As CocoDataset.parse_data_info decides.
        if entry['area'] <= 0 or not _covers_pixels(box, image):
            empty.append(entry['id'])
        else:
            used.append(entry)
    total = len(annotations)
    if fractions == total - len(orphans) > 0:
        raise DataError(
            f'{where}: all {fractions} boxes lie between 0 and 1: they are fractions of the image '
            'size. Multiply them by its width and height; COCO boxes are in pixels.'
        )
    if corners == total - len(orphans) > 0 and (corner_areas == corners or beyond * 4 >= corners):
        raise DataError(
            f'{where}: all {corners} boxes look like corners (x1, y1, x2, y2): read as x, y, width '
            f'and height, {beyond} of them extend beyond their image. Write x, y, x2 - x1, y2 - y1.'
        )
    if beyond * 2 > total:
        warnings.warn(
            f'{where}: {beyond} of the {total} boxes extend beyond their image. Check that they '
            'are x, y, width and height, in pixels of the image size that the file lists.',
            stacklevel=3,
        )
    if orphans:
        warnings.warn(
            f'{where}: {len(orphans)} of the {total} annotations are for images that it does not '
            f"list (ids {shorten(orphans)}), and are ignored. List their images in 'images', or "
            'remove the annotations.',
            stacklevel=3,
        )
    if empty:
        warnings.warn(
            f'{where}: {len(empty)} of the {total} annotations have a box outside the image or '
            f'less than a pixel wide or high, or no area (ids {shorten(empty)}). Training ignores '
            'them, but evaluation counts them as objects not found. Correct or remove them.',
            stacklevel=3,
        )
    return used


def _covers_pixels(box: Sequence[float], image: dict) -> bool:
    x, y, width, height = box
    inside_x = min(x + width, image['width']) - max(x, 0)
    inside_y = min(y + height, image['height']) - max(y, 0)
    return width >= 1 and height >= 1 and inside_x > 0 and inside_y > 0
