"""Checks of COCO annotation files for what MMDetection would crash on or silently ignore.

Anything that would end a run with a traceback, or assign boxes to the wrong image or class, is
refused. What MMDetection leaves out of training occurs in COCO too, and is counted.
"""

import json
import math
import warnings
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmsmca.errors import DataError, shorten

# Kinds of annotations, as CocoDataset.parse_data_info tells them apart; training uses objects only.
OBJECT = 'of an object'
CROWD = "of a crowd ('iscrowd': 1)"
IGNORED = "with 'ignore': 1"
EMPTY = 'with a box outside the image, less than a pixel wide or high, or without area'
KINDS = (OBJECT, CROWD, IGNORED, EMPTY)


@dataclass(frozen=True)
class CocoFile:
    """The parts of an annotation file that the checks need; the rest, up to gigabytes, is freed.

    Attributes:
        categories: Names of the categories, in the order of the file.
        images: File name and shorter side in pixels of every image by its id, in the file's order.
        has_iscrowd: Whether every annotation has the key ``iscrowd``.
        unusable_ids: Annotation ids that are not positive integers, which evaluations misread.
        string_ids: Lists with string ids: "images", "categories", "images and categories" or ''.
        annotations: Numbers of annotations by category name and kind, and then by image id.
    """

    categories: tuple[str, ...]
    images: dict[int | str, tuple[str, float]]
    has_iscrowd: bool
    unusable_ids: tuple[int | float | str, ...]
    string_ids: str
    annotations: dict[tuple[str, str], Counter[int | str]]

    def count(self, kinds: Sequence[str], classes: Iterable[str] | None = None) -> Counter:
        """Numbers of annotations of these kinds and classes (None: of all), by image."""
        total: Counter[int | str] = Counter()
        for name in self.categories if classes is None else set(classes):
            for kind in kinds:
                total.update(self.annotations.get((name, kind), {}))
        return total


def read_coco(path: str, key: str) -> CocoFile:
    """Read and check the annotation file of a data set or an evaluator with this config key."""
    where = f'{key}.ann_file: {path}'
    content = _read_json(path, where)
    images = {image['id']: image for image in _entries(where, content, 'images')}
    categories = _entries(where, content, 'categories')
    # COCO's files for its test images have no annotations.
    entries = _entries(where, content, 'annotations') if 'annotations' in content else []
    if not images:
        raise DataError(f'{where} lists no images. Specify an annotation file that does.')
    names = {category['id']: category['name'] for category in categories}
    unknown = {entry['category_id'] for entry in entries} - names.keys()
    if unknown:
        raise DataError(
            f'{where} uses the category ids {shorten(sorted(unknown, key=str))}, which are not in '
            "its 'categories' list. Add them there."
        )
    listed = [entry for entry in entries if entry['image_id'] in images]
    _check_boxes(where, listed, images)
    if len(listed) < len(entries):
        orphans = [entry['id'] for entry in entries if entry['image_id'] not in images]
        warnings.warn(
            f'{where}: {len(orphans)} of the {len(entries)} annotations are for images that it '
            f'does not list (ids {shorten(orphans)}), and are ignored. List their images in '
            "'images', or remove the annotations.",
            stacklevel=2,
        )
    annotations: dict[tuple[str, str], Counter[int | str]] = defaultdict(Counter)
    for entry in listed:
        kind = _kind(entry, images[entry['image_id']])
        annotations[names[entry['category_id']], kind][entry['image_id']] += 1
    strings = {
        name
        for name, ids in (('images', images), ('categories', names))
        if any(isinstance(i, str) for i in ids)
    }
    return CocoFile(
        categories=tuple(category['name'] for category in categories),
        images={i: (e['file_name'], min(e['height'], e['width'])) for i, e in images.items()},
        has_iscrowd=all('iscrowd' in entry for entry in entries),
        unusable_ids=tuple(
            entry['id']
            for entry in entries
            if not (isinstance(entry['id'], int) and entry['id'] > 0)
        ),
        string_ids=' and '.join(sorted(strings, reverse=True)),
        annotations=dict(annotations),
    )


def duplicates(names: Iterable[Hashable]) -> list:
    """Names that occur more than once, in order of first occurrence."""
    return [name for name, count in Counter(names).items() if count > 1]


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
        raise DataError(
            f'{where} cannot be read as JSON ({error}). Restore the file, as it may be an '
            'incomplete copy, or save it as UTF-8 without a byte order mark.'
        ) from error


def _entries(where: str, content: object, name: str) -> list[dict]:
    """One of the lists of a file, after checking its entries against :data:`LISTS`."""
    entries = content.get(name) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise DataError(
            f"{where} is not a COCO annotation file: it has no list '{name}'. "
            'Specify an instances file in COCO format, or convert yours to it.'
        )
    for i, entry in enumerate(entries):
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
    repeated = duplicates(entry['id'] for entry in entries)
    if repeated:
        raise DataError(
            f"{where} has several entries in '{name}' with the same id: {shorten(repeated)}. "
            'All but the last would be lost. Give each a unique id.'
        )
    return entries


def _check_boxes(where: str, entries: list[dict], images: dict[int | str, dict]) -> None:
    """Refuse boxes in other formats, and warn if most extend beyond their image."""
    corners = corner_areas = beyond = fractions = 0
    for entry in entries:
        x, y, w, h = entry['bbox']
        image = images[entry['image_id']]
        width, height = image['width'], image['height']
        fractions += 0 < max(w, h) <= max(entry['bbox']) <= 1 < min(width, height)
        if x < w <= width + 1 and y < h <= height + 1:
            corners += 1
            corner_areas += abs((w - x) * (h - y) - entry['area']) < 1 < abs(w * h - entry['area'])
        beyond += x + w > width + 1 or y + h > height + 1
    total = len(entries)
    if fractions == total > 0:
        raise DataError(
            f'{where}: all {fractions} boxes lie between 0 and 1: they are fractions of the image '
            'size. Multiply them by its width and height; COCO boxes are in pixels.'
        )
    if corners == total > 0 and (corner_areas == corners or beyond * 4 >= corners):
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


def _kind(entry: dict, image: dict) -> str:
    """Kind of an annotation, as ``CocoDataset.parse_data_info`` decides."""
    if entry.get('ignore'):
        return IGNORED
    x, y, width, height = entry['bbox']
    inside_x = min(x + width, image['width']) - max(x, 0)
    inside_y = min(y + height, image['height']) - max(y, 0)
    if min(inside_x, inside_y, entry['area']) <= 0 or min(width, height) < 1:
        return EMPTY
    return CROWD if entry.get('iscrowd') else OBJECT
