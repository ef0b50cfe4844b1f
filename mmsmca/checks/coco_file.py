"""Annotation files in COCO's format: what MMDetection would trip over, or pass over in silence.

Refused is what ends a run with a trace, or gives boxes to the wrong image or class. A box that
MMDetection leaves out of training (it is outside its image, or less than a pixel wide or high) is
COCO's practice too: a warning says how many there are.
"""

import json
import math
import warnings
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass

from mmsmca.errors import DataError, few

IMAGE_KEYS = {'id', 'file_name', 'height', 'width'}
CATEGORY_KEYS = {'id', 'name'}
ANNOTATION_KEYS = {'id', 'image_id', 'category_id', 'bbox', 'area'}


@dataclass(frozen=True)
class CocoFile:
    """What the checks need of an annotation file; the rest, up to gigabytes, is let go.

    Attributes:
        categories: Names of the categories, in the order of the file.
        image_ids: Ids of the images.
        file_names: File names of the images.
        shorter_sides: The shorter side of every image, in pixels, by its id.
        has_annotations: Whether there is an annotation that MMDetection trains on.
        has_iscrowd: Whether every annotation has the key ``iscrowd``.
        unusable_ids: Ids of annotations that evaluations misread: no positive integers.
        string_ids: What has ids that are strings: "images", "categories", both or ''.
        boxed: Ids of the images with any annotation of a category, by the category's name.
        counts: Numbers of trainable objects, by category and image: in the image, and no crowd.
    """

    categories: tuple[str, ...]
    image_ids: frozenset[int | str]
    file_names: tuple[str, ...]
    shorter_sides: dict[int | str, float]
    has_annotations: bool
    has_iscrowd: bool
    unusable_ids: tuple[int | float | str, ...]
    string_ids: str
    boxed: dict[str, set[int | str]]
    counts: dict[str, Counter[int | str]]

    def boxed_images(self, classes: Iterable[str]) -> frozenset[int | str]:
        """Ids of the images that have any annotation of some classes."""
        boxed: set[int | str] = set()
        for name in classes:
            boxed |= self.boxed.get(name, set())
        return self.image_ids & boxed

    def objects(self, classes: Iterable[str]) -> Counter[int | str]:
        """Numbers of trainable objects of some classes, by image."""
        total: Counter[int | str] = Counter()
        for name in classes:
            total.update(self.counts.get(name, {}))
        return total


def read_coco(path: str, key: str) -> CocoFile:
    """Read and check an annotation file.

    Args:
        path: The file.
        key: Config key of what it belongs to, such as ``train_dataloader.dataset``, for messages.

    Returns:
        What the other checks need of it. A warning names annotations that are passed over.

    Raises:
        DataError: If it is no annotation file in COCO's format, or contradicts itself.
    """
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except UnicodeDecodeError as error:
        raise _wrong_encoding(path, key) from error
    except (OSError, ValueError) as error:
        if 'BOM' in str(error):
            raise _wrong_encoding(path, key) from error
        raise DataError(
            f'{key}.ann_file: {path} cannot be read as JSON ({error}). '
            'Restore the file; it may have been copied in part.'
        ) from error
    where = f'{key}.ann_file: {path}'
    images = _entries(where, content, 'images', IMAGE_KEYS)
    categories = _entries(where, content, 'categories', CATEGORY_KEYS)
    # The files of COCO's test images have none.
    annotations = []
    if 'annotations' in content:
        annotations = _entries(where, content, 'annotations', ANNOTATION_KEYS)
    if not images:
        raise DataError(f'{where} lists no images. Name an annotation file that does.')
    _check_images(where, images)
    _check_ids(where, 'annotations', annotations, ('image_id', 'category_id'))
    unknown = {entry['category_id'] for entry in annotations} - {c['id'] for c in categories}
    if unknown:
        raise DataError(
            f'{where} uses the category ids {few(sorted(unknown, key=str))}, which its list '
            "'categories' does not have. Add them there."
        )
    used = _check_boxes(where, annotations, {i['id']: i for i in images})
    names = {category['id']: category['name'] for category in categories}
    boxed: dict[str, set[int | str]] = {name: set() for name in names.values()}
    counts: dict[str, Counter[int | str]] = {name: Counter() for name in names.values()}
    for entry in annotations:
        boxed[names[entry['category_id']]].add(entry['image_id'])
    for entry in used:
        if not entry.get('iscrowd'):
            counts[names[entry['category_id']]][entry['image_id']] += 1
    lists = dict(images=images, categories=categories)
    strings = [key for key, found in lists.items() if any(isinstance(e['id'], str) for e in found)]
    return CocoFile(
        categories=tuple(category['name'] for category in categories),
        image_ids=frozenset(image['id'] for image in images),
        file_names=tuple(image['file_name'] for image in images),
        shorter_sides={image['id']: min(image['height'], image['width']) for image in images},
        has_annotations=bool(used),
        has_iscrowd=all('iscrowd' in entry for entry in annotations),
        unusable_ids=tuple(
            entry['id'] for entry in annotations if not _is_positive_integer(entry['id'])
        ),
        string_ids=' and '.join(strings),
        boxed=boxed,
        counts=counts,
    )


def _wrong_encoding(path: str, key: str) -> DataError:
    return DataError(
        f'{key}.ann_file: {path} is not plain UTF-8, which JSON is read as: it begins with a byte '
        'order mark, or has another encoding. Save it as UTF-8 without a byte order mark.'
    )


def duplicates(names: Iterable[Hashable]) -> list:
    """What occurs more than once, in the order of the second occurrence."""
    seen: set[Hashable] = set()
    repeated: dict[Hashable, None] = {}
    for name in names:
        if name in seen:
            repeated[name] = None
        seen.add(name)
    return list(repeated)


def _entries(where: str, content: object, name: str, keys: set[str]) -> list[dict]:
    found = content.get(name) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise DataError(
            f"{where} is not a COCO annotation file: it has no list '{name}'. "
            "Name an instances file in COCO's format, or convert yours to it."
        )
    for i, entry in enumerate(found):
        if not (isinstance(entry, dict) and keys <= entry.keys()):
            lacking = sorted(keys.difference(entry if isinstance(entry, dict) else ()))
            raise DataError(
                f'{where} is not a COCO annotation file: {name}[{i}] has no '
                f"'{lacking[0]}'. Add it to every entry of '{name}'."
            )
    _check_ids(where, name, found, ('id',))
    repeated = duplicates(entry['id'] for entry in found)
    if repeated:
        raise DataError(
            f"{where} has several entries of '{name}' with the same id: {few(repeated)}. All but "
            'the last would be lost. Number them anew, all different.'
        )
    return found


def _check_ids(where: str, name: str, entries: list[dict], keys: Sequence[str]) -> None:
    for i, entry in enumerate(entries):
        for key in keys:
            if not isinstance(entry[key], str) and not _is_number(entry[key]):
                raise _wrong_value(where, f'{name}[{i}]', entry, key, 'a number or a string')


def _check_images(where: str, images: list[dict]) -> None:
    for i, image in enumerate(images):
        for side in ('height', 'width'):
            if not _is_number(image[side]) or image[side] <= 0:
                raise _wrong_value(
                    where, f'images[{i}]', image, side, 'a positive number of pixels'
                )
        if not isinstance(image['file_name'], str) or not image['file_name']:
            raise _wrong_value(
                where, f'images[{i}]', image, 'file_name', "a path below the images' folder"
            )


def _check_boxes(where: str, annotations: list[dict], images: dict[int | str, dict]) -> list[dict]:
    """Refuse boxes that are none, warn of those passed over; return the others."""
    orphans, empty, used = [], [], []
    corners = corner_areas = beyond = fractions = 0
    for i, entry in enumerate(annotations):
        box = entry['bbox']
        if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
            raise _wrong_value(
                where, f'annotations[{i}]', entry, 'bbox',
                'four finite numbers: x, y, width, height in pixels',
            )  # fmt: skip
        if not _is_number(entry['area']):
            raise _wrong_value(where, f'annotations[{i}]', entry, 'area', 'a finite number')
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
            f'{where}: all {fractions} boxes lie between 0 and 1: they are fractions of the image. '
            'Multiply them by its width and height; COCO counts pixels.'
        )
    if corners == total - len(orphans) > 0 and (corner_areas == corners or beyond * 4 >= corners):
        raise DataError(
            f'{where}: all {corners} boxes look like corners (x1, y1, x2, y2): as x, y, width and '
            f'height {beyond} of them leave their image. Write x, y, x2 - x1, y2 - y1.'
        )
    if beyond * 2 > total:
        warnings.warn(
            f'{where}: {beyond} of the {total} boxes leave their image. Check that they are x, y, '
            'width and height in pixels of the image that the file lists.',
            stacklevel=3,
        )
    if orphans:
        warnings.warn(
            f'{where}: {len(orphans)} of the {total} annotations are of images that it does not '
            f"list (ids {few(orphans)}), and are passed over. List their images in 'images', or "
            'remove the annotations.',
            stacklevel=3,
        )
    if empty:
        warnings.warn(
            f'{where}: {len(empty)} of the {total} annotations have a box outside of the image or '
            f'less than a pixel wide or high, or no area (ids {few(empty)}). Training passes them '
            'over, evaluation counts them as objects not found. Correct or remove them.',
            stacklevel=3,
        )
    return used


def _covers_pixels(box: Sequence[float], image: dict) -> bool:
    x, y, width, height = box
    inside_x = min(x + width, image['width']) - max(x, 0)
    inside_y = min(y + height, image['height']) - max(y, 0)
    return width >= 1 and height >= 1 and inside_x > 0 and inside_y > 0


def _is_number(value: object) -> bool:
    # A bool is an int to Python, but no number in JSON.
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and value > 0


def _wrong_value(where: str, place: str, entry: dict, key: str, allowed: str) -> DataError:
    return DataError(
        f'{where}: {place}.{key} is {entry[key]!r} (id {entry["id"]}), and must be {allowed}. '
        'Correct the file, or remove the entry.'
    )
