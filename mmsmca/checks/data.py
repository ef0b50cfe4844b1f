"""Data sets and evaluators of a config, checked against their files and each other."""

import difflib
import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import BaseDetDataset, CocoDataset
from mmdet.evaluation import CocoMetric, LVISMetric, MultiDatasetsEvaluator
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.registry import DefaultScope

from mmsmca.errors import (
    ConfigError,
    DataError,
    Fault,
    Found,
    RepairableError,
    first_difference,
    listed_below,
    shorten,
)

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


class Used(NamedTuple):
    """What a run uses of a data set.

    Attributes:
        key: Its key in the config.
        dataset: The data set, without its annotations; its pipeline only loads the image.
        file: Its annotation file.
        ids: Ids of the images that the run uses.
    """

    key: str
    dataset: CocoDataset
    file: CocoFile
    ids: list[int | str]

    def path(self, image_id: int | str) -> str:
        """File of an image."""
        return os.path.join(self.dataset.data_prefix['img'], self.file.images[image_id].file_name)


def find_data(cfg: Config, phases: Sequence[str]) -> Found[tuple[Datasets, Evaluators]]:
    """Find the data of a run, and do the quick checks: classes, files and folders.

    Returns local data sets in COCO's format with their config keys, and metrics that read a COCO
    file with their config keys and the key of the data that each evaluates; of both, those whose
    annotation files exist.
    """
    datasets: list[tuple[str, BaseDetDataset]] = []
    evaluators: Evaluators = []
    for phase in phases:
        loader = cfg.get(f'{phase}_dataloader') or {}
        for key, node in walk(loader.get('dataset'), f'{phase}_dataloader.dataset'):
            if _is_kind(node, BaseDetDataset):
                dataset = yield from _build_unread(key, node)
                if dataset is None:
                    continue
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
    found: Datasets = []
    for key, dataset in datasets:
        named = yield from _class_faults(key, dataset, cfg.model)
        if _is_coco(type(dataset)) and (yield from _path_faults(key, dataset)) and named:
            found.append((key, dataset))
    present: Evaluators = []
    for key, node, evaluated in evaluators:
        if (yield from _ann_file_faults(key, node.ann_file)):
            present.append((key, node, evaluated))
    return found, present


def check_files(datasets: Datasets, evaluators: Evaluators, model: ConfigDict) -> Found[list[Used]]:
    """Read the annotation files, each once, and check them; return what can be read of them."""
    files: dict[str, CocoFile | None] = {}
    used: dict[str, Used] = {}
    trained: list[Used] = []
    for key, dataset in datasets:
        file = yield from _read_once(files, dataset.ann_file, key)
        if file is None:
            continue
        fits = yield from _category_faults(key, dataset.metainfo['classes'], file, dataset.ann_file)
        ids, unused = yield from _used_images(key, dataset, file)
        used[key] = Used(key, dataset, file, ids)
        if fits and not dataset.test_mode:
            trained.append(used[key])
            yield from _training_faults(used[key], unused)
            yield from _query_faults(used[key], model)
        yield from _missing_images(used[key])
    yield from _unseen_classes(trained)
    learnt = {os.path.abspath(one.path(i)) for one in trained for i in one.ids}
    for one in used.values():
        number = sum(os.path.abspath(one.path(i)) in learnt for i in one.ids)
        if one.dataset.test_mode and number:
            yield UserWarning(
                f'{one.key}: {number} of its {len(one.ids)} images are also trained on, so AP will '
                'be too high. Evaluate on other images.'
            )
    for key, evaluator, evaluated_key in evaluators:
        file = yield from _read_once(files, evaluator.ann_file, key)
        if file is None:
            continue
        evaluated = [one for one in used.values() if f'{one.key}.'.startswith(f'{evaluated_key}.')]
        for one in evaluated:
            if file is not one.file:
                classes = one.dataset.metainfo['classes']
                yield from _category_faults(key, classes, file, evaluator.ann_file)
            yield from _other_images(f'{key}.ann_file: {evaluator.ann_file}', file, one)
        if not evaluator.get('format_only'):
            classes = [one.dataset.metainfo['classes'] for one in evaluated]
            yield from _evaluation_faults(key, evaluator, file, classes)
            unseen = file.images.keys() - {i for one in evaluated for i in one.ids}
            if evaluated and unseen:
                yield UserWarning(
                    f'{key}.ann_file: {evaluator.ann_file} has {len(unseen)} images that '
                    f'{evaluated_key} does not have. Their objects count as not found, so AP '
                    'will be too low. Set it to a file with the same images.'
                )
    return list(used.values())


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


def _build_unread(key: str, node: ConfigDict) -> Found[BaseDetDataset | None]:
    """Build a data set, with paths joined and metainfo merged, but without its annotations."""
    loading = [t for t in node.get('pipeline') or () if _is_kind(t, LoadImageFromFile)]
    try:
        with DefaultScope.overwrite_default_scope('mmdet'):
            return DATASETS.build(dict(node, pipeline=loading[:1], lazy_init=True))
    except Exception as error:
        yield ConfigError(
            f'{key}: {described(error)}. Correct its keys in the config or with '
            f'--cfg-options {key}.*.'
        )
        return None


def _class_faults(key: str, dataset: BaseDetDataset, model: ConfigDict) -> Found[bool]:
    """Faults of the classes and their colours; whether there are classes at all."""
    for name in dataset.metainfo:
        meant = difflib.get_close_matches(name.lower(), META, n=1, cutoff=0.8)
        if meant and name not in META:
            yield ConfigError(f'{key}.metainfo.{name}: nothing reads it. Rename it to {meant[0]}.')
    classes = dataset.metainfo.get('classes')
    if classes is None or isinstance(classes, str):
        yield ConfigError(
            f'{key}.metainfo.classes is {classes!r}, but must be a sequence of category '
            "names: metainfo=dict(classes=('first', 'second')); a single one is ('first',)."
        )
        return False
    if duplicates(classes):
        yield ConfigError(
            f'{key}.metainfo.classes lists {shorten(duplicates(classes))} more than once. '
            'List every category once.'
        )
    for place, head in walk(model, 'model'):
        if not (isinstance(head, dict) and BBOX_HEAD.fullmatch(place)):
            continue
        num_classes, place = head.get('num_classes'), f'{place}.num_classes'
        if num_classes not in (None, len(classes)):
            yield ConfigError(
                f'{place} is {num_classes}, but {key} has {len(classes)} classes '
                f'({shorten(classes)}). Set {place}={len(classes)}, or list the '
                f'{num_classes} categories in {key}.metainfo.classes.'
            )
    palette = dataset.metainfo.get('palette')
    if isinstance(palette, tuple) and palette and isinstance(palette[0], Sequence):
        yield ConfigError(
            f'{key}.metainfo.palette is a tuple, which MMDetection takes for the colour of all '
            'classes. Make it a list of colours.'
        )
    if isinstance(palette, list) and len(palette) < len(classes):
        # The 80 colours of CocoDataset are no fault of a config with more classes.
        inherited = palette == type(dataset).METAINFO.get('palette')
        yield (UserWarning if inherited else ConfigError)(
            f'{key}.metainfo.palette has {len(palette)} colours for {len(classes)} classes, so '
            'detections cannot be drawn. Set it to None for random colours.'
        )
    return True


def _ann_file_faults(key: str, ann_file: str) -> Found[bool]:
    """Whether an annotation file exists."""
    exists = os.path.isfile(ann_file)
    if not exists:
        root = f'{key}.data_root or ' if '_dataloader' in key else ''
        yield DataError(
            f'{key}.ann_file: annotation file {os.path.abspath(ann_file)} does not exist. Put it '
            f'there, or set {root}{key}.ann_file (--cfg-options) to where it is; the data set and '
            'its evaluator each have their own.'
        )
    return exists


def _path_faults(key: str, dataset: CocoDataset) -> Found[bool]:
    """Faults of the paths of a data set; whether its annotations can be read."""
    exists = yield from _ann_file_faults(key, dataset.ann_file)
    prefix = dataset.data_prefix
    if 'img' not in prefix or prefix.keys() - {'img', 'seg'}:
        yield ConfigError(
            f"{key}.data_prefix has {shorten(sorted(prefix))}, but must have 'img' and may "
            "have 'seg': data_prefix=dict(img='train2017/')."
        )
        return False
    folder = os.path.abspath(prefix['img'])
    if not os.path.isdir(folder):
        yield DataError(
            f'{key}.data_prefix.img: image folder {folder} does not exist. Put the images there, '
            f'or set {key}.data_root or {key}.data_prefix.img (--cfg-options) to where they are.'
        )
    return exists


def _read_once(files: dict[str, CocoFile | None], path: str, key: str) -> Found[CocoFile | None]:
    real_path = os.path.realpath(path)
    if real_path not in files:
        files[real_path] = yield from read_coco(path, key)
    return files[real_path]


def _category_faults(key: str, classes: Sequence[str], file: CocoFile, path: str) -> Found[bool]:
    """Whether a file has the classes, in the same order."""
    wanted = set(classes)
    in_file = [name for name in file.categories if name in wanted]
    if in_file == list(classes):
        return True
    # `metainfo` belongs to the data set; its evaluator takes the classes from there.
    dataset = key if '_dataloader' in key else f'{key.split("_")[0]}_dataloader.dataset'
    repeated = duplicates(in_file)
    lacking = [name for name in classes if name not in in_file]
    if repeated:
        yield DataError(
            f'{key}.ann_file: {path} has several categories named {shorten(repeated)}. '
            'Merge them, or give them different names.'
        )
    if lacking:
        yield DataError(
            f'{key}.ann_file: {path} does not have {len(lacking)} of the {len(classes)} classes of '
            f'{dataset}: {shorten(lacking)}. It has {len(file.categories)} categories: '
            f'{shorten(file.categories)}. Set {dataset}.metainfo=dict(classes=...) to those, and '
            'model.bbox_head.num_classes to their number.'
        )
    if not repeated and not lacking:
        # MMDetection numbers classes in the file's order, but names them in that of `classes`.
        yield DataError(
            f'{key}.ann_file: {path} lists the categories in a different order from '
            f'{dataset}.metainfo.classes: {first_difference(in_file, classes)}, so labels would '
            "get the wrong names. List them in the file's order, the same for every data set."
        )
    return False


def _other_images(where: str, file: CocoFile, evaluated: Used) -> Iterator[Fault]:
    """Images of a data set that the evaluator's file does not have."""
    images = evaluated.file.images
    lacking = images.keys() - file.images.keys()
    renamed = [
        i
        for i in images.keys() - lacking
        if os.path.basename(images[i].file_name) != os.path.basename(file.images[i].file_name)
    ]
    if lacking or renamed:
        problem = 'does not have' if lacking else 'has other images with the ids of'
        ids = sorted(lacking or renamed, key=str)
        yield DataError(
            f'{where} {problem} {len(ids)} of the images of {evaluated.key} (ids {shorten(ids)}). '
            f'Set it to that of the data set, {evaluated.dataset.ann_file}.'
        )


def _evaluation_faults(
    key: str, evaluator: ConfigDict, file: CocoFile, class_lists: Sequence[Sequence[str]]
) -> Iterator[Fault]:
    where = f'{key}.ann_file: {evaluator.ann_file}'
    complete = f'Complete the file, or set {key}.format_only=True to write the detections only.'
    # LVIS has no crowds, and is evaluated by other code.
    if not file.annotations:
        yield DataError(f'{where} cannot be evaluated against: it needs annotations. {complete}')
        return
    if not file.has_iscrowd and not _is_kind(evaluator, LVISMetric):
        yield RepairableError(
            f"{where} cannot be evaluated against: it needs 'iscrowd' (0 or 1) in every "
            f'annotation. {complete}',
            evaluator.ann_file,
        )
    if file.unusable_ids:
        yield RepairableError(
            f'{where} has annotations with the ids {shorten(file.unusable_ids)}. Evaluation counts '
            'only 1, 2, ... as found: 0 means "no match", and others are truncated to integers. '
            'Number the annotations from 1.',
            evaluator.ann_file,
        )
    # faster-coco-eval's compiled code accepts only numbers.
    if file.string_ids and class_of(evaluator) is not CocoMetric:
        yield RepairableError(
            f'{where}: the ids of its {file.string_ids} are strings, which {evaluator.type} cannot '
            f"read. Make them numbers, or set {key}.type='CocoMetric'.",
            evaluator.ann_file,
        )
    for classes in class_lists:
        if not file.count((OBJECT, IGNORED, EMPTY), classes):
            yield DataError(
                f'{where} has no objects of the classes {shorten(classes)} to evaluate against '
                'except crowds: AP would be -1. Specify a file that has some.'
            )
    for kind in (IGNORED, EMPTY):
        count = file.count([kind])
        if count:
            yield UserWarning(
                f'{where} has {count.total()} annotations {kind} (images {shorten(list(count))}). '
                'Training leaves such annotations out, but evaluation counts them as objects to '
                "be found. Correct or remove them, or mark them with 'iscrowd': 1."
            )


def _used_images(
    key: str, dataset: CocoDataset, file: CocoFile
) -> Found[tuple[list[int | str], dict[str, int]]]:
    """Ids of the images that ``CocoDataset`` chooses, and numbers of the others by reason."""
    settings = {} if dataset.test_mode else dataset.filter_cfg or {}
    boxed = file.count(KINDS, dataset.metainfo['classes'])
    least = settings.get('min_size', 0)
    kept = [i for i in file.images if i in boxed or not settings.get('filter_empty_gt')]
    large = [i for i in kept if min(file.images[i].height, file.images[i].width) >= least]
    used, indices = large, dataset._indices
    if indices is not None:
        numbers = [indices] if isinstance(indices, int) else indices
        if not all(-len(large) <= i < len(large) for i in numbers):
            yield ConfigError(
                f'{key}.indices={indices} is not below {len(large)}, the number of images that the '
                f'filter leaves of {dataset.ann_file}. Set it to None to use all of them.'
            )
        elif isinstance(indices, int):
            used = large[:indices] if indices >= 0 else large[indices:]
        else:
            used = [large[i] for i in indices]
    return used, {
        EMPTY_IMAGES: len(file.images) - len(kept),
        f'smaller than {least} pixels (filter_cfg.min_size={least})': len(kept) - len(large),
        'not among its indices': len(large) - len(set(used)),
    }


def _training_faults(used: Used, unused: dict[str, int]) -> Iterator[Fault]:
    """What training leaves out, if it matters.

    Training and evaluation agree on crowds, other categories and images without objects. These
    matter only if they are the greater part.
    """
    key, dataset, file, ids = used

    def number(kinds: Sequence[str], classes: Sequence[str] | None) -> int:
        counts = file.count(kinds, classes)
        return sum(counts[i] for i in ids)

    classes = dataset.metainfo['classes']
    skipped = {kind: number([kind], classes) for kind in KINDS}
    objects, total = skipped.pop(OBJECT), number(KINDS, None)
    faulty = sorted(file.count([EMPTY], classes).keys() & set(ids), key=str)
    skipped[f'{EMPTY} (images {shorten(faulty)})'] = skipped.pop(EMPTY)
    skipped['of other categories'] = total - objects - sum(skipped.values())
    left_out = [
        f'{what} ({", ".join(f"{n} {why}" for why, n in reasons.items() if n)})'
        for what, reasons in (('annotations', skipped), ('images', unused))
        if any(reasons.values())
    ]
    message = f'{key}.ann_file: training leaves out {" and ".join(left_out)} of {dataset.ann_file}'
    expected = {CROWD, 'of other categories', EMPTY_IMAGES}
    if not ids:
        yield DataError(f'{message}; no image is left. Correct {key}.filter_cfg or indices.')
    elif (
        any(n and why not in expected for why, n in (skipped | unused).items())
        or sum(skipped.values()) > total / 2
        or sum(unused.values()) > len(file.images) / 2
    ):
        yield UserWarning(
            f'{message}; {objects} objects in {len(ids)} images are left. To train on the others, '
            f'correct the file, {key}.filter_cfg or indices.'
        )


def _unseen_classes(trained: Sequence[Used]) -> Iterator[Fault]:
    """Classes that no training data set has objects of.

    One data set may have none at all: unlabelled images, or images of the background.
    """
    places = shorten([f'{one.key}.ann_file: {one.dataset.ann_file}' for one in trained])
    classes = [name for one in trained[:1] for name in one.dataset.metainfo['classes']]
    unseen = [
        name
        for name in classes
        if not any(one.file.count([OBJECT], [name]).keys() & set(one.ids) for one in trained)
    ]
    if trained and unseen == classes and all(one.ids for one in trained):
        yield DataError(
            f'{places} has no annotations to train on: no box of the classes lies inside its image '
            "and is neither a crowd nor marked 'ignore'. Specify an annotation file that has some."
        )
    elif unseen and unseen != classes:
        yield UserWarning(
            f'{trained[0].key}.metainfo.classes: no box of {shorten(unseen)} to train on. Leave '
            'out a category that only groups others, such as the one that Roboflow numbers 0.'
        )


def _query_faults(used: Used, model: ConfigDict) -> Iterator[Fault]:
    key, dataset, file, _ = used
    queries = model.get('num_queries')
    counts = file.count([OBJECT], dataset.metainfo['classes'])
    crowded = [i for i, count in counts.items() if isinstance(queries, int) and count > queries]
    if crowded:
        most = max(crowded, key=lambda i: counts[i])
        yield UserWarning(
            f'{key}.ann_file: {len(crowded)} of the images have more objects than '
            f'model.num_queries={queries} can find; image {most} has {counts[most]}. Set '
            'model.num_queries higher than that.'
        )


def _missing_images(used: Used) -> Iterator[Fault]:
    # List each folder once: looking up each of 118,000 files takes minutes on a network disk.
    names = defaultdict(list)
    for i in used.ids:
        folder, name = os.path.split(used.path(i))
        names[folder].append(name)
    missing = []
    for folder, listed in names.items():
        present = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        missing += [os.path.join(folder, name) for name in listed if name not in present]
    # Without the folder, this has been said.
    if missing and os.path.isdir(used.dataset.data_prefix['img'] or '.'):
        yield DataError(
            f'{used.key}: {len(missing)} of the {len(used.ids)} images that it uses of '
            f'{used.dataset.ann_file} do not exist: {shorten(missing)}. Restore them, point '
            f'{used.key}.data_prefix.img to their folder, or remove them from the annotation file.'
            + listed_below(missing[5:])
        )
