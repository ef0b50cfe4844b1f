"""Data sets and evaluators of a config, checked against their files and each other."""

import difflib
import os
import re
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from mmdet.datasets import BaseDetDataset, CocoDataset
from mmdet.evaluation import CocoMetric, LVISMetric, MultiDatasetsEvaluator
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict

from mmsmca.errors import ConfigError, DataError, first_difference, shorten

from .checkpoint import is_local
from .coco_file import CROWD, EMPTY, IGNORED, KINDS, OBJECT, CocoFile, duplicates, read_coco
from .config import walk
from .describe import class_of, described

EMPTY_IMAGES = 'without a box of its classes (filter_cfg.filter_empty_gt=True)'
# Keys of a data set's metainfo that MMDetection reads.
META = ('classes', 'palette')
# Config keys of the heads whose num_classes must match the data set.
BBOX_HEAD = re.compile(r'model(\.roi_head(\.\d+)?)*\.bbox_head(\.\d+)?')

Datasets = list[tuple[str, CocoDataset]]
Evaluators = list[tuple[str, ConfigDict, str]]


def find_data(cfg: Config, phases: Sequence[str]) -> tuple[Datasets, Evaluators]:
    """Find the data of a run, and do the quick checks: classes, files and folders.

    Returns local data sets in COCO's format with their config keys, and metrics that read a COCO
    file with their config keys and the key of the data that each evaluates.
    """
    datasets: list[tuple[str, BaseDetDataset]] = []
    evaluators: Evaluators = []
    for phase in phases:
        loader = cfg.get(f'{phase}_dataloader') or {}
        for key, node in walk(loader.get('dataset'), f'{phase}_dataloader.dataset'):
            if _is_kind(node, BaseDetDataset):
                dataset = _build_unread(key, node)
                paths = (dataset.ann_file, *dataset.data_prefix.values())
                if all(is_local(path, dataset.backend_args) for path in paths):
                    datasets.append((key, dataset))
        evaluator = cfg.get(f'{phase}_evaluator')
        # It gives every data set of a concatenation a metric of its own.
        apart = _is_kind(evaluator, MultiDatasetsEvaluator)
        for key, node in walk(evaluator, f'{phase}_evaluator'):
            if _is_kind(node, CocoMetric) and node.get('ann_file'):
                if is_local(node.ann_file, node.get('backend_args')):
                    part = f'.datasets.{key.split(".")[-1]}' if apart else ''
                    evaluators.append((key, node, f'{phase}_dataloader.dataset{part}'))

    # Quick checks come first: COCO's training annotations take ten seconds to read.
    for key, dataset in datasets:
        _check_classes(key, dataset.metainfo, cfg.model)
        _check_palette(key, dataset)
        if _is_coco(type(dataset)):
            _check_paths(key, dataset)
    for key, evaluator, _ in evaluators:
        _check_ann_file(key, evaluator.ann_file)
    return [(key, dataset) for key, dataset in datasets if _is_coco(type(dataset))], evaluators


def check_files(datasets: Datasets, evaluators: Evaluators, model: ConfigDict) -> None:
    """Read the annotation files, each once, and check them."""
    files: dict[str, CocoFile] = {}
    used: dict[str, list[int | str]] = {}
    objects: dict[str, int] = {}
    for key, dataset in datasets:
        file = _read_once(files, dataset.ann_file, key)
        _check_categories(key, dataset.metainfo['classes'], file, dataset.ann_file)
        used[key], unused = _used_images(key, dataset, file)
        if not dataset.test_mode:
            objects[f'{key}.ann_file: {dataset.ann_file}'] = _check_training(
                key, dataset, file, used[key], unused
            )
            _check_queries(key, dataset, file, model)
        _check_images(key, dataset, file, used[key])
    # One data set may have none: unlabelled images, or images of the background.
    if objects and not any(objects.values()):
        raise DataError(
            f'{shorten(list(objects))} has no annotations to train on: no box of the classes lies '
            "inside its image and is neither a crowd nor marked 'ignore'. Specify an annotation "
            'file that has some.'
        )
    for key, evaluator, evaluated_key in evaluators:
        file = _read_once(files, evaluator.ann_file, key)
        evaluated = [(k, d) for k, d in datasets if f'{k}.'.startswith(f'{evaluated_key}.')]
        for dataset_key, dataset in evaluated:
            classes = dataset.metainfo['classes']
            _check_categories(key, classes, file, evaluator.ann_file)
            _check_same_images(
                f'{key}.ann_file: {evaluator.ann_file}',
                file,
                dataset_key,
                dataset.ann_file,
                _read_once(files, dataset.ann_file, key),
            )
        if not evaluator.get('format_only'):
            _check_evaluable(key, evaluator, file, [d.metainfo['classes'] for _, d in evaluated])
            unseen = file.images.keys() - {i for k, _ in evaluated for i in used[k]}
            if evaluated and unseen:
                warnings.warn(
                    f'{key}.ann_file: {evaluator.ann_file} has {len(unseen)} images that '
                    f'{evaluated_key} does not have. Their objects count as not found, so AP '
                    'will be too low. Set it to a file with the same images.',
                    stacklevel=2,
                )


def _is_kind(node: Any, kind: type) -> bool:
    """Whether a config's node refers to a class of this kind, rather than to a function."""
    cls = class_of(node)
    return isinstance(cls, type) and issubclass(cls, kind)


def _is_coco(cls: type[BaseDetDataset]) -> bool:
    """Whether a data set reads its annotations as ``CocoDataset`` does."""
    return (
        issubclass(cls, CocoDataset)
        and cls.load_data_list is CocoDataset.load_data_list
        and cls.parse_data_info is CocoDataset.parse_data_info
    )


def _build_unread(key: str, node: ConfigDict) -> BaseDetDataset:
    """Build a data set, with paths joined and metainfo merged, but without its annotations."""
    try:
        return DATASETS.build(dict(node, pipeline=[], lazy_init=True))
    except Exception as error:
        raise ConfigError(
            f'{key}: {described(error)}. Correct its keys in the config or with '
            f'--cfg-options {key}.*.'
        ) from error


def _check_classes(key: str, metainfo: dict, model: ConfigDict) -> None:
    for name in metainfo:
        meant = difflib.get_close_matches(name.lower(), META, n=1, cutoff=0.8)
        if meant and name not in META:
            raise ConfigError(f'{key}.metainfo.{name}: nothing reads it. Rename it to {meant[0]}.')
    classes = metainfo.get('classes')
    if classes is None or isinstance(classes, str):
        raise ConfigError(
            f'{key}.metainfo.classes is {classes!r}, but must be a sequence of category '
            "names: metainfo=dict(classes=('first', 'second')); a single one is ('first',)."
        )
    if duplicates(classes):
        raise ConfigError(
            f'{key}.metainfo.classes lists {shorten(duplicates(classes))} more than once. '
            'List every category once.'
        )
    for place, head in walk(model, 'model'):
        if not (isinstance(head, dict) and BBOX_HEAD.fullmatch(place)):
            continue
        num_classes, place = head.get('num_classes'), f'{place}.num_classes'
        if num_classes not in (None, len(classes)):
            raise ConfigError(
                f'{place} is {num_classes}, but {key} has {len(classes)} classes '
                f'({shorten(classes)}). Set {place}={len(classes)}, or list the '
                f'{num_classes} categories in {key}.metainfo.classes.'
            )


def _check_palette(key: str, dataset: BaseDetDataset) -> None:
    palette, classes = dataset.metainfo.get('palette'), dataset.metainfo['classes']
    if isinstance(palette, tuple) and palette and isinstance(palette[0], Sequence):
        raise ConfigError(
            f'{key}.metainfo.palette is a tuple, which MMDetection takes for the colour of all '
            'classes. Make it a list of colours.'
        )
    if isinstance(palette, list) and len(palette) < len(classes):
        message = (
            f'{key}.metainfo.palette has {len(palette)} colours for {len(classes)} classes, so '
            'detections cannot be drawn. Set it to None for random colours.'
        )
        if palette != type(dataset).METAINFO.get('palette'):
            raise ConfigError(message)
        # The 80 colours of CocoDataset are no fault of a config with more classes.
        warnings.warn(message, stacklevel=3)


def _check_ann_file(key: str, ann_file: str) -> None:
    if not os.path.isfile(ann_file):
        root = f'{key}.data_root or ' if '_dataloader' in key else ''
        raise DataError(
            f'{key}.ann_file: annotation file {os.path.abspath(ann_file)} does not exist. Put it '
            f'there, or set {root}{key}.ann_file (--cfg-options) to where it is; the data set and '
            'its evaluator each have their own.'
        )


def _check_paths(key: str, dataset: CocoDataset) -> None:
    _check_ann_file(key, dataset.ann_file)
    prefix = dataset.data_prefix
    if 'img' not in prefix or prefix.keys() - {'img', 'seg'}:
        raise ConfigError(
            f"{key}.data_prefix has {shorten(sorted(prefix))}, but must have 'img' and may "
            "have 'seg': data_prefix=dict(img='train2017/')."
        )
    folder = os.path.abspath(prefix['img'])
    if not os.path.isdir(folder):
        raise DataError(
            f'{key}.data_prefix.img: image folder {folder} does not exist. Put the images there, '
            f'or set {key}.data_root or {key}.data_prefix.img (--cfg-options) to where they are.'
        )


def _read_once(files: dict[str, CocoFile], path: str, key: str) -> CocoFile:
    real_path = os.path.realpath(path)
    if real_path not in files:
        files[real_path] = read_coco(path, key)
    return files[real_path]


def _check_categories(key: str, classes: Sequence[str], file: CocoFile, path: str) -> None:
    wanted = set(classes)
    in_file = [name for name in file.categories if name in wanted]
    if in_file == list(classes):
        return
    # `metainfo` belongs to the data set; its evaluator takes the classes from there.
    dataset = key if '_dataloader' in key else f'{key.split("_")[0]}_dataloader.dataset'
    repeated = duplicates(in_file)
    if repeated:
        raise DataError(
            f'{key}.ann_file: {path} has several categories named {shorten(repeated)}. '
            'Merge them, or give them different names.'
        )
    lacking = [name for name in classes if name not in in_file]
    if lacking:
        raise DataError(
            f'{key}.ann_file: {path} does not have {len(lacking)} of the {len(classes)} classes of '
            f'{dataset}: {shorten(lacking)}. It has {len(file.categories)} categories: '
            f'{shorten(file.categories)}. Set {dataset}.metainfo=dict(classes=...) to those, and '
            'model.bbox_head.num_classes to their number.'
        )
    # MMDetection numbers classes in the order of the file, but names them in that of `classes`.
    raise DataError(
        f'{key}.ann_file: {path} lists the categories in a different order from '
        f'{dataset}.metainfo.classes: {first_difference(in_file, classes)}, so labels would get '
        "the wrong names. List them in the file's order, the same for every data set."
    )


def _check_same_images(
    where: str, file: CocoFile, dataset_key: str, ann_file: str, dataset_file: CocoFile
) -> None:
    images = dataset_file.images
    lacking = images.keys() - file.images.keys()
    renamed = [
        i
        for i in images.keys() - lacking
        if os.path.basename(images[i][0]) != os.path.basename(file.images[i][0])
    ]
    if lacking or renamed:
        problem = 'does not have' if lacking else 'has other images with the ids of'
        ids = sorted(lacking or renamed, key=str)
        raise DataError(
            f'{where} {problem} {len(ids)} of the images of {dataset_key} (ids {shorten(ids)}). '
            f'Set it to that of the data set, {ann_file}.'
        )


def _check_evaluable(
    key: str, evaluator: ConfigDict, file: CocoFile, class_lists: Sequence[Sequence[str]]
) -> None:
    where = f'{key}.ann_file: {evaluator.ann_file}'
    # LVIS has no crowds, and is evaluated by other code.
    needs_iscrowd = not _is_kind(evaluator, LVISMetric)
    if not file.annotations or (needs_iscrowd and not file.has_iscrowd):
        needed = "annotations, with 'iscrowd' (0 or 1) in every entry"
        raise DataError(
            f'{where} cannot be evaluated against: it needs '
            f'{needed if needs_iscrowd else "annotations"}. Complete the file, or set '
            f'{key}.format_only=True to write the detections only.'
        )
    if file.unusable_ids:
        raise DataError(
            f'{where} has annotations with the ids {shorten(file.unusable_ids)}. Evaluation counts '
            'only 1, 2, ... as found: 0 means "no match", and others are truncated to integers. '
            'Number the annotations from 1.'
        )
    # faster-coco-eval's compiled code accepts only numbers.
    if file.string_ids and class_of(evaluator) is not CocoMetric:
        raise DataError(
            f'{where}: the ids of its {file.string_ids} are strings, which {evaluator.type} cannot '
            f"read. Make them numbers, or set {key}.type='CocoMetric'."
        )
    for classes in class_lists:
        if not file.count((OBJECT, IGNORED, EMPTY), classes):
            raise DataError(
                f'{where} has no objects of the classes {shorten(classes)} to evaluate against '
                'except crowds: AP would be -1. Specify a file that has some.'
            )
    for kind in (IGNORED, EMPTY):
        count = file.count([kind])
        if count:
            warnings.warn(
                f'{where} has {count.total()} annotations {kind} (images {shorten(list(count))}). '
                'Training leaves such annotations out, but evaluation counts them as objects to '
                "be found. Correct or remove them, or mark them with 'iscrowd': 1.",
                stacklevel=3,
            )


def _used_images(
    key: str, dataset: CocoDataset, file: CocoFile
) -> tuple[list[int | str], dict[str, int]]:
    """Ids of the images that ``CocoDataset`` chooses, and numbers of the others by reason."""
    settings = {} if dataset.test_mode else dataset.filter_cfg or {}
    boxed = file.count(KINDS, dataset.metainfo['classes'])
    least = settings.get('min_size', 0)
    kept = [i for i in file.images if i in boxed or not settings.get('filter_empty_gt')]
    large = [i for i in kept if file.images[i][1] >= least]
    used, indices = large, dataset._indices
    if indices is not None:
        numbers = [indices] if isinstance(indices, int) else indices
        if not all(-len(large) <= i < len(large) for i in numbers):
            raise ConfigError(
                f'{key}.indices={indices} is not below {len(large)}, the number of images that the '
                f'filter leaves of {dataset.ann_file}. Set it to None to use all of them.'
            )
        if isinstance(indices, int):
            used = large[:indices] if indices >= 0 else large[indices:]
        else:
            used = [large[i] for i in indices]
    return used, {
        EMPTY_IMAGES: len(file.images) - len(kept),
        f'smaller than {least} pixels (filter_cfg.min_size={least})': len(kept) - len(large),
        'not among its indices': len(large) - len(set(used)),
    }


def _check_training(
    key: str,
    dataset: CocoDataset,
    file: CocoFile,
    used: Sequence[int | str],
    unused: dict[str, int],
) -> int:
    """Say what training leaves out, if it matters, and return the number of objects that it uses.

    Training and evaluation agree on crowds, other categories and images without objects. These
    matter only if they are the greater part.
    """

    def number(kinds: Sequence[str], classes: Sequence[str] | None) -> int:
        counts = file.count(kinds, classes)
        return sum(counts[i] for i in used)

    classes = dataset.metainfo['classes']
    skipped = {kind: number([kind], classes) for kind in KINDS}
    objects, total = skipped.pop(OBJECT), number(KINDS, None)
    faulty = sorted(file.count([EMPTY], classes).keys() & set(used), key=str)
    skipped[f'{EMPTY} (images {shorten(faulty)})'] = skipped.pop(EMPTY)
    skipped['of other categories'] = total - objects - sum(skipped.values())
    left_out = [
        f'{what} ({", ".join(f"{n} {why}" for why, n in reasons.items() if n)})'
        for what, reasons in (('annotations', skipped), ('images', unused))
        if any(reasons.values())
    ]
    message = f'{key}.ann_file: training leaves out {" and ".join(left_out)} of {dataset.ann_file}'
    if not used:
        raise DataError(f'{message}; no image is left. Correct {key}.filter_cfg or indices.')
    expected = {CROWD, 'of other categories', EMPTY_IMAGES}
    if (
        any(n and why not in expected for why, n in (skipped | unused).items())
        or sum(skipped.values()) > total / 2
        or sum(unused.values()) > len(file.images) / 2
    ):
        warnings.warn(
            f'{message}; {objects} objects in {len(used)} images are left. To train on the others, '
            f'correct the file, {key}.filter_cfg or indices.',
            stacklevel=3,
        )
    return objects


def _check_queries(key: str, dataset: CocoDataset, file: CocoFile, model: ConfigDict) -> None:
    queries = model.get('num_queries')
    counts = file.count([OBJECT], dataset.metainfo['classes'])
    crowded = [i for i, count in counts.items() if isinstance(queries, int) and count > queries]
    if crowded:
        most = max(crowded, key=lambda i: counts[i])
        warnings.warn(
            f'{key}.ann_file: {len(crowded)} of the images have more objects than '
            f'model.num_queries={queries} can find; image {most} has {counts[most]}. Set '
            'model.num_queries higher than that.',
            stacklevel=3,
        )


def _check_images(
    key: str, dataset: CocoDataset, file: CocoFile, used: Sequence[int | str]
) -> None:
    # List each folder once: looking up each of 118,000 files takes minutes on a network disk.
    names = defaultdict(list)
    for i in used:
        folder, name = os.path.split(os.path.join(dataset.data_prefix['img'], file.images[i][0]))
        names[folder].append(name)
    missing = []
    for folder, listed in names.items():
        present = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        missing += [os.path.join(folder, name) for name in listed if name not in present]
    if missing:
        raise DataError(
            f'{key}: {len(missing)} of the {len(used)} images that it uses of {dataset.ann_file} '
            f'do not exist: {shorten(missing)}. Restore them, point {key}.data_prefix.img to their '
            'folder, or remove them from the annotation file.'
        )
