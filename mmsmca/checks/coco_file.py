"""Checks of COCO annotation files for what MMDetection would crash on or silently ignore.

Anything that would end a run with a traceback, or assign boxes to the wrong image or class, is
refused. What MMDetection leaves out of training occurs in COCO too, and is counted.
"""

import codecs
import json
import reprlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mmsmca.errors import DataError, Fault, Found, RepairableError, shorten

# Kinds of annotations, as CocoDataset.parse_data_info tells them apart; training uses objects only.
OBJECT = 'of an object'
CROWD = "of a crowd ('iscrowd': 1)"
IGNORED = "with 'ignore': 1"
EMPTY = 'with a box outside the image, less than a pixel wide or high, or without area'
KINDS = (OBJECT, CROWD, IGNORED, EMPTY)


class Image(NamedTuple):
    """An image of an annotation file; its size is in pixels."""

    file_name: str
    height: float
    width: float


@dataclass(frozen=True)
class CocoFile:
    """The parts of an annotation file that the checks need; the rest, up to gigabytes, is freed.

    Attributes:
        categories: Names of the categories, in the order of the file.
        images: Images by id, in the file's order.
        has_iscrowd: Whether every annotation has the key ``iscrowd``.
        unusable_ids: Annotation ids that are not positive integers, which evaluations misread.
        string_ids: Lists with string ids: "images", "categories", "images and categories" or ''.
        annotations: Numbers of annotations by category name and kind, and then by image id.
    """

    categories: tuple[str, ...]
    images: dict[int | str, Image]
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


def read_coco(path: str, key: str) -> Found[CocoFile | None]:
    """Read and check the annotation file of a data set or an evaluator with this config key.

    Returns:
        The file without its faulty entries; None if it has no images or its lists are missing.
    """
    where = f'{key}.ann_file: {path}'
    try:
        content = load_json(path)
        marked = is_marked(path)
    except (OSError, ValueError, RecursionError) as error:
        yield DataError(
            f'{where} cannot be read as JSON ({error}). Restore the file, as it may be an '
            'incomplete copy, or save it as UTF-8.'
        )
        return None
    if marked:
        yield RepairableError(
            f'{where} begins with a byte order mark, which MMDetection cannot read. Save it as '
            'UTF-8 without one.',
            path,
        )
    images = yield from _entries(where, path, content, 'images')
    categories = yield from _entries(where, path, content, 'categories')
    if images is None or categories is None:
        return None
    # COCO's files for its test images have no annotations.
    entries = yield from _entries(where, path, content, 'annotations', [])
    if entries is None:
        return None
    if not images:
        if not content['images']:
            yield DataError(f'{where} lists no images. Specify an annotation file that does.')
        return None
    repeated = duplicates(image['file_name'] for image in images)
    if repeated:
        yield UserWarning(
            f"{where} has several entries in 'images' with the same file_name: "
            f'{shorten(repeated)}. Each counts as an image with its own boxes. Merge them.'
        )
    names = {category['id']: category['name'] for category in categories}
    unknown = {entry['category_id'] for entry in entries} - _ids(content['categories'])
    if unknown:
        yield DataError(
            f'{where} uses the category ids {shorten(sorted(unknown, key=str))}, which are not in '
            "its 'categories' list. Add them there."
        )
    by_id = {image['id']: image for image in images}
    listed = [e for e in entries if e['image_id'] in by_id and e['category_id'] in names]
    yield from _box_faults(where, listed, by_id)
    known = _ids(content['images'])
    orphans = [entry['id'] for entry in entries if entry['image_id'] not in known]
    if orphans:
        yield UserWarning(
            f'{where}: {len(orphans)} of the {len(entries)} annotations are for images that it '
            f'does not list (ids {shorten(orphans)}), and are ignored. List their images in '
            "'images', or remove the annotations."
        )
    annotations: dict[tuple[str, str], Counter[int | str]] = defaultdict(Counter)
    for entry in listed:
        kind = kind_of(entry, by_id[entry['image_id']])
        annotations[names[entry['category_id']], kind][entry['image_id']] += 1
    strings = [
        name
        for name, ids in (('images', by_id), ('categories', names))
        if any(isinstance(i, str) for i in ids)
    ]
    return CocoFile(
        categories=tuple(category['name'] for category in categories),
        images={i: Image(e['file_name'], e['height'], e['width']) for i, e in by_id.items()},
        has_iscrowd=all('iscrowd' in entry for entry in entries),
        unusable_ids=tuple(entry['id'] for entry in entries if not is_usable(entry['id'])),
        string_ids=' and '.join(strings),
        annotations=dict(annotations),
    )


def load_json(path: str) -> Any:
    """Content of a JSON file in UTF-8."""
    with open(path, encoding='utf-8-sig') as file:
        return json.load(file)


def is_marked(path: str) -> bool:
    """Whether a file begins with a byte order mark."""
    with open(path, 'rb') as file:
        return file.read(len(codecs.BOM_UTF8)) == codecs.BOM_UTF8


def is_usable(annotation_id: object) -> bool:
    """Whether evaluations count an annotation with this id: 0 means "no match" to them."""
    return type(annotation_id) is int and annotation_id > 0


def duplicates(names: Iterable[Hashable]) -> list:
    """Names that occur more than once, in order of first occurrence."""
    return [name for name, count in Counter(names).items() if count > 1]


def _is_number(value: object) -> bool:
    # A bool is an int in Python, but not a number in JSON. This is false for NaN.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 2**63


def is_box(value: object) -> bool:
    """Whether a value is a list of four finite numbers."""
    return isinstance(value, list) and len(value) == 4 and all(map(_is_number, value))


class Kind(NamedTuple):
    """Values that a key may have: their description, and a test for them."""

    words: str
    fits: Callable[[Any], bool]


ID = Kind(
    'a number of up to 64 bits or a string',
    lambda value: isinstance(value, str) or _is_number(value),
)
NAME = Kind('a name', lambda value: isinstance(value, Hashable))
PATH = Kind('a path inside the image folder', lambda value: isinstance(value, str) and value != '')
PIXELS = Kind('a positive number of pixels', lambda value: _is_number(value) and value > 0)
BOX = Kind('four finite numbers: x, y, width, height in pixels', is_box)
AREA = Kind('a finite number', _is_number)
FLAG = Kind('0 or 1', lambda value: value in (0, 1))
# Keys that every entry of a list must have; evaluations need 'iscrowd', training does not.
LISTS = {
    'images': dict(id=ID, file_name=PATH, height=PIXELS, width=PIXELS),
    'categories': dict(id=ID, name=NAME),
    'annotations': dict(id=ID, image_id=ID, category_id=ID, bbox=BOX, area=AREA, iscrowd=FLAG),
}


def _entries(
    where: str, path: str, content: object, name: str, default: list | None = None
) -> Found[list[dict] | None]:
    """Entries of one of the lists of a file that are as :data:`LISTS` says; None without a list."""
    entries = content.get(name, default) if isinstance(content, dict) else None
    if not isinstance(entries, list):
        yield DataError(
            f"{where} is not a COCO annotation file: it has no list '{name}'. "
            'Specify an instances file in COCO format, or convert yours to it.'
        )
        return None
    unusable = {i for i, entry in enumerate(entries) if not isinstance(entry, dict)}
    if unusable:
        yield DataError(
            f'{where}: {name}[{min(unusable)}] is {reprlib.repr(entries[min(unusable)])}, but must '
            f'be an object with {shorten(list(LISTS[name]))}.{_number(unusable)} Remove it.'
        )
    objects = [(i, entry) for i, entry in enumerate(entries) if isinstance(entry, dict)]
    for key, kind in LISTS[name].items():
        faulty = [i for i, entry in objects if key not in entry or not kind.fits(entry[key])]
        lacking = [i for i in faulty if key not in entries[i]]
        wrong = [i for i in faulty if key in entries[i]]
        if lacking and kind is not FLAG:
            message = (
                f"{where} is not a COCO annotation file: {name}[{lacking[0]}] has no '{key}'."
                f"{_number(lacking)} Add it to every entry of '{name}'."
            )
            yield RepairableError(message, path) if kind is AREA else DataError(message)
        if wrong:
            entry = entries[wrong[0]]
            yield DataError(
                f'{where}: {name}[{wrong[0]}].{key} is {reprlib.repr(entry[key])} (id '
                f'{entry.get("id")}), but must be {kind.words}.{_number(wrong)} Correct the file, '
                'or remove the entry.'
            )
        unusable.update(wrong if kind in (AREA, FLAG) else lacking + wrong)
    good = [entry for i, entry in objects if i not in unusable]
    repeated = duplicates(entry['id'] for entry in good)
    if repeated:
        message = (
            f"{where} has several entries in '{name}' with the same id: {shorten(repeated)}. "
            'All but the last would be lost. Give each a unique id.'
        )
        yield RepairableError(message, path) if name == 'annotations' else DataError(message)
    return good


def _number(places: Collection[int]) -> str:
    return f' {len(places)} entries have this fault.' if len(places) > 1 else ''


def _ids(entries: Sequence[Any]) -> set:
    """All ids of a list, also those of entries with other faults."""
    ids = (entry.get('id') for entry in entries if isinstance(entry, dict))
    return {i for i in ids if ID.fits(i)}


def _box_faults(
    where: str, entries: Sequence[dict], images: dict[int | str, dict]
) -> Iterator[Fault]:
    """Boxes in other formats, and a warning if most extend beyond their image."""
    corners = corner_areas = beyond = fractions = 0
    for entry in entries:
        x, y, w, h = entry['bbox']
        image = images[entry['image_id']]
        width, height, area = image['width'], image['height'], entry.get('area', w * h)
        fractions += 0 < max(w, h) <= max(entry['bbox']) <= 1 < min(width, height)
        if x < w <= width + 1 and y < h <= height + 1:
            corners += 1
            corner_areas += abs((w - x) * (h - y) - area) < 1 < abs(w * h - area)
        beyond += x + w > width + 1 or y + h > height + 1
    total = len(entries)
    if fractions == total > 0:
        yield DataError(
            f'{where}: all {fractions} boxes lie between 0 and 1: they are fractions of the image '
            'size. Multiply them by its width and height; COCO boxes are in pixels.'
        )
    elif corners == total > 0 and (corner_areas == corners or beyond * 4 >= corners):
        yield DataError(
            f'{where}: all {corners} boxes look like corners (x1, y1, x2, y2): read as x, y, width '
            f'and height, {beyond} of them extend beyond their image. Write x, y, x2 - x1, y2 - y1.'
        )
    elif beyond * 2 > total:
        yield UserWarning(
            f'{where}: {beyond} of the {total} boxes extend beyond their image. Check that they '
            'are x, y, width and height, in pixels of the image size that the file lists.'
        )


def kind_of(entry: dict, image: dict) -> str:
    """Kind of an annotation, as ``CocoDataset.parse_data_info`` decides."""
    if entry.get('ignore'):
        return IGNORED
    x, y, width, height = entry['bbox']
    inside_x = min(x + width, image['width']) - max(x, 0)
    inside_y = min(y + height, image['height']) - max(y, 0)
    area = entry.get('area', width * height)
    if min(inside_x, inside_y, area) <= 0 or min(width, height) < 1:
        return EMPTY
    return CROWD if entry.get('iscrowd') else OBJECT
