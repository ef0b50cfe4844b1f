"""Checks before the first iteration, and the launch of MMDetection's own scripts behind them.

``tools/train.py`` and ``tools/test.py`` call :func:`run_tool`. What would otherwise end a run with
a trace minutes later (a wrong path, categories of another data set, a checkpoint of another model)
ends it at once with one line that names the key or the file and the remedy.

Images are not opened before the run: that takes many minutes for COCO's 118,000. One that cannot be
decoded (any truncated JPEG or PNG, with OpenCV 4.12) ends the run when its turn comes, by its name.
A JPEG damaged in the middle decodes to wrong pixels, which nothing here notices.
"""

import importlib.util
import json
import os
import re
import sys
import zipfile
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

import mmdet
import torch
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS, TRANSFORMS
from mmengine.config import Config, ConfigDict
from mmengine.registry import Registry
from mmengine.runner import find_latest_checkpoint

from mmsmca import cpu, safe_globals

# The data loaders and evaluators that each script uses.
PHASES = {'train': ('train', 'val'), 'test': ('test',)}

IMAGE_KEYS = {'id', 'file_name', 'height', 'width'}
CATEGORY_KEYS = {'id', 'name'}
ANNOTATION_KEYS = {'id', 'image_id', 'category_id', 'bbox', 'area'}


class ConfigError(ValueError):
    """A config, or a checkpoint it names, that cannot work. The message names key and remedy."""


class DataError(ValueError):
    """Annotations or images that cannot be used. The message names file and remedy."""


class ImageError(DataError):
    """An image that cannot be read while a run is under way."""

    def __str__(self) -> str:
        # A data-loading worker hands an error over with its whole trace as the message; the last
        # line is ours. In the main process there is no other line.
        last_line = super().__str__().strip().splitlines()[-1]
        return last_line.removeprefix(f'{__name__}.{type(self).__name__}: ')


@TRANSFORMS.register_module(name='LoadImageFromFile')
class LoadImage(LoadImageFromFile):
    """MMCV's ``LoadImageFromFile``, naming the file whatever goes wrong.

    MMCV itself names it only in some cases: an empty file ends in OpenCV's assertion, and MMCV 2.1
    fails on every image it cannot decode with "'NoneType' object has no attribute 'shape'".
    MMDetection's registry is searched before MMCV's, so that configs keep their pipelines; the
    name is taken only where this module is imported, that is in our tools.
    """

    def transform(self, results: dict) -> dict | None:
        """Load the image.

        Args:
            results: A sample with ``img_path``.

        Returns:
            The sample with ``img``, ``img_shape`` and ``ori_shape``.

        Raises:
            ImageError: If the image cannot be read or decoded.
        """
        try:
            return super().transform(results)
        except Exception as error:
            reason = ' '.join(f'{type(error).__name__}: {error}'.split())
            raise ImageError(
                f'image {results["img_path"]} cannot be loaded ({reason}). Restore the file, or '
                'take the image out of the annotation file.'
            ) from error


@dataclass(frozen=True)
class CocoFile:
    """What the checks need of an annotation file; the rest, up to gigabytes, is let go."""

    categories: tuple[str, ...]
    image_ids: frozenset[int]
    file_names: tuple[str, ...]
    has_annotations: bool
    has_iscrowd: bool


def check_config(cfg: Config, phases: Sequence[str]) -> None:
    """Check what a run needs before it starts: data, categories and checkpoint.

    Left alone are data sets that do not read their annotations as ``CocoDataset`` does, data behind
    ``backend_args`` or a URL, and checkpoints behind a URL. Nothing is written.

    Args:
        cfg: The config as it will run. ``cfg.load_from`` is the checkpoint, if any, and
            ``cfg.resume`` says whether training continues from it.
        phases: Which of "train", "val" and "test" the run uses.

    Raises:
        ConfigError: If keys of the config, or config and checkpoint, do not fit together.
        DataError: If annotations or images are missing or cannot be used.
    """
    datasets = [
        (key, dataset)
        for phase in phases
        if cfg.get(f'{phase}_dataloader')
        for key, dataset in _coco_datasets(
            cfg[f'{phase}_dataloader'].dataset, f'{phase}_dataloader.dataset'
        )
    ]
    evaluators = [
        (key, evaluator, phase)
        for phase in phases
        for key, evaluator in _evaluators(cfg.get(f'{phase}_evaluator'), f'{phase}_evaluator')
    ]

    # What takes no time comes first: COCO's training annotations take ten seconds to read.
    for key, dataset in datasets:
        _check_classes(key, dataset.metainfo.get('classes'), cfg.model)
        _check_paths(key, dataset)
    for key, evaluator, _ in evaluators:
        _check_ann_file(key, evaluator.ann_file)
    _check_checkpoint(cfg, datasets, fine_tuning='train' in phases and not cfg.get('resume'))

    files: dict[str, CocoFile] = {}
    for key, dataset in datasets:
        file = _read_once(files, dataset.ann_file, key)
        _check_categories(key, dataset.metainfo['classes'], file, dataset.ann_file)
        if not dataset.test_mode and not file.has_annotations:
            raise DataError(
                f'{key}.ann_file: {dataset.ann_file} has no annotations to train on. '
                "Name an annotation file that has a list 'annotations'."
            )
        # Of a subset, the images of the rest need not be there.
        if dataset._indices is None:
            _check_images(key, dataset, file)
    for key, evaluator, phase in evaluators:
        file = _read_once(files, evaluator.ann_file, key)
        if not evaluator.get('format_only') and not (file.has_annotations and file.has_iscrowd):
            raise DataError(
                f'{key}.ann_file: {evaluator.ann_file} cannot be evaluated against: it needs '
                "annotations, with 'iscrowd' (0 or 1) in every entry. Complete the file, or set "
                f'{key}.format_only=True to write the detections only.'
            )
        for dataset_key, dataset in datasets:
            if not dataset_key.startswith(phase):
                continue
            _check_categories(key, dataset.metainfo['classes'], file, evaluator.ann_file)
            unknown = _read_once(files, dataset.ann_file, key).image_ids - file.image_ids
            if unknown:
                raise DataError(
                    f'{key}.ann_file: {evaluator.ann_file} does not have {len(unknown)} of the '
                    f'images of {dataset_key} (ids {_few(sorted(unknown))}). Set {key}.ann_file to '
                    f"the data set's, {dataset.ann_file}."
                )


def effective_config(args: Namespace) -> Config:
    """The config as MMDetection's script runs it, as far as the checks are concerned.

    Args:
        args: What ``parse_args`` of MMDetection's ``tools/train.py`` or ``tools/test.py`` returns.

    Returns:
        The config with ``--cfg-options`` merged; ``load_from`` is the checkpoint that the run
        starts from (:func:`latest_checkpoint` for ``--resume`` without a path) or None.

    Raises:
        ConfigError: If there is no config file of that name.
    """
    if not os.path.isfile(args.config):
        raise ConfigError(
            f'config {args.config} does not exist. Give the path of a config file, or start with '
            '`mim`, which finds the configs of mmsmca by their file name.'
        )
    cfg = Config.fromfile(args.config)
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if 'checkpoint' in args:
        cfg.load_from, cfg.resume = args.checkpoint, False
    elif args.resume is not None:
        cfg.load_from, cfg.resume = (None if args.resume == 'auto' else args.resume), True
    if cfg.get('resume') and cfg.get('load_from') is None:
        default = os.path.join('work_dirs', Path(args.config).stem)
        cfg.load_from = latest_checkpoint(args.work_dir or cfg.get('work_dir') or default)
    return cfg


def latest_checkpoint(work_dir: str) -> str | None:
    """Find the checkpoint to resume from, whatever ended the run.

    It is the one that MMEngine names in ``last_checkpoint``. If that is truncated or gone, or
    ``last_checkpoint`` is not there or empty, as a run leaves them that was killed while it wrote,
    it is the newest complete one that training wrote to the folder.

    Args:
        work_dir: Work directory of the run.

    Returns:
        Path of a complete checkpoint, or a URL in ``last_checkpoint``, which is left alone; without
        one the path in ``last_checkpoint``; without that None.
    """
    named = find_latest_checkpoint(work_dir) or None
    if named and not _is_local(named, None):
        return named
    written = [path for kind in ('epoch', 'iter') for path in Path(work_dir).glob(f'{kind}_*.pth')]
    newest_first = sorted(written, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in filter(None, (named, *map(str, newest_first))):
        try:
            _read_checkpoint(path)
        except ConfigError as error:
            print(f'Not resumed from: {error}', file=sys.stderr)
        else:
            return path
    return named


def mmdet_script(name: str) -> ModuleType:
    """Import one of MMDetection's own scripts.

    Args:
        name: "train" or "test".

    Returns:
        The script as a module, with its functions ``parse_args`` and ``main``.

    Raises:
        ConfigError: If the installed MMDetection has no scripts.
    """
    package = Path(mmdet.__file__).parent
    # A wheel carries them in the package; beside it they lie in an editable source checkout.
    for folder in (package / '.mim' / 'tools', package.parent / 'tools'):
        path = folder / f'{name}.py'
        if path.is_file():
            spec = importlib.util.spec_from_file_location(f'mmdet_{name}', path)
            script = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(script)
            return script
    raise ConfigError(
        f'MMDetection in {package} comes without its tools/{name}.py. Install the package '
        '`onedl-mmdetection` or `mmdet` from its wheel.'
    )


def run_tool(name: str) -> int:
    """Run MMDetection's script on ``sys.argv``, after the checks.

    Args:
        name: "train" or "test".

    Returns:
        The exit code: 0, or 2 after an error of the data or the config, which is printed to
        stderr as one line. Other exceptions pass.
    """
    try:
        script = mmdet_script(name)
        args = script.parse_args()
        cfg = effective_config(args)
        if _first_on_machine(args.launcher):
            check_config(cfg, PHASES[name])
        if cfg.get('resume') and cfg.load_from is not None:
            args.resume = cfg.load_from
        cpu.support(cfg, args)
        # The script would read the arguments again.
        script.parse_args = lambda: args
        script.main()
    except (ConfigError, DataError, cpu.LauncherError) as error:
        print(f'{name}.py: error: {error}', file=sys.stderr)
        return 2
    return 0


def _first_on_machine(launcher: str) -> bool:
    """Whether this is the process that checks: one on each machine, as each has its own disk."""
    # With the launchers not named here, MMDetection's `parse_args` has set LOCAL_RANK.
    ranks = {'slurm': 'SLURM_LOCALID', 'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK'}
    return int(os.environ.get(ranks.get(launcher, 'LOCAL_RANK'), 0)) == 0


def _is_local(path: str, backend_args: dict | None) -> bool:
    return not backend_args and '://' not in path


def _class_of(node: ConfigDict, registry: Registry) -> type:
    found = registry.get(node.type) if isinstance(node.type, str) else node.type
    # A type nobody registered is MMDetection's to report.
    return found if isinstance(found, type) else object


def _coco_datasets(node: ConfigDict, key: str) -> Iterator[tuple[str, CocoDataset]]:
    """Every local COCO data set at or below a node, inside whatever wrappers, with its key."""
    if 'dataset' in node:
        yield from _coco_datasets(node.dataset, f'{key}.dataset')
    elif 'datasets' in node:
        for i, dataset in enumerate(node.datasets):
            yield from _coco_datasets(dataset, f'{key}.datasets.{i}')
    else:
        cls = _class_of(node, DATASETS)
        if (
            issubclass(cls, CocoDataset)
            and cls.load_data_list is CocoDataset.load_data_list
            and cls.parse_data_info is CocoDataset.parse_data_info
        ):
            # Built without reading the annotations, it joins its paths and merges its metainfo.
            dataset = DATASETS.build(dict(node, pipeline=[], lazy_init=True))
            paths = (dataset.ann_file, *dataset.data_prefix.values())
            if all(_is_local(path, dataset.backend_args) for path in paths):
                yield key, dataset


def _evaluators(node: ConfigDict | list | None, key: str) -> Iterator[tuple[str, ConfigDict]]:
    """Every COCO metric that reads a local annotation file, with its key."""
    if isinstance(node, list):
        for i, evaluator in enumerate(node):
            yield from _evaluators(evaluator, f'{key}.{i}')
    elif node is not None and issubclass(_class_of(node, METRICS), CocoMetric):
        if node.get('ann_file') and _is_local(node.ann_file, node.get('backend_args')):
            yield key, node


def _check_classes(key: str, classes: Sequence[str] | None, model: ConfigDict) -> None:
    if classes is None or isinstance(classes, str):
        raise ConfigError(
            f'{key}.metainfo.classes is {classes!r}, and must be the sequence of the category '
            "names: metainfo=dict(classes=('first', 'second')); a single one is ('first',)."
        )
    num_classes = model.get('bbox_head', {}).get('num_classes')
    if num_classes is not None and num_classes != len(classes):
        raise ConfigError(
            f'model.bbox_head.num_classes is {num_classes}, but {key} has {len(classes)} classes '
            f'({_few(classes)}). Set model.bbox_head.num_classes={len(classes)}, or list the '
            f'{num_classes} categories in {key}.metainfo.classes.'
        )


def _check_ann_file(key: str, ann_file: str) -> None:
    if not os.path.isfile(ann_file):
        settable = f'{key}.ann_file'
        if '_dataloader' in key:
            settable = f'{key}.data_root or {settable}'
        raise DataError(
            f'{key}.ann_file: annotation file {os.path.abspath(ann_file)} does not exist. Put it '
            f'there, or set {settable} (--cfg-options) to where it is; the data set and its '
            'evaluator each name their own.'
        )


def _check_paths(key: str, dataset: CocoDataset) -> None:
    _check_ann_file(key, dataset.ann_file)
    if 'img' not in dataset.data_prefix:
        raise ConfigError(
            f"{key}.data_prefix has no key 'img'. Set it to the folder of the images: "
            "data_prefix=dict(img='train2017/')."
        )
    folder = os.path.abspath(dataset.data_prefix['img'])
    if not os.path.isdir(folder):
        raise DataError(
            f'{key}.data_prefix.img: image folder {folder} does not exist. Put the images there, '
            f'or set {key}.data_root or {key}.data_prefix.img (--cfg-options) to where they are.'
        )


def _read_once(files: dict[str, CocoFile], path: str, key: str) -> CocoFile:
    real_path = os.path.realpath(path)
    if real_path not in files:
        files[real_path] = _read_coco(path, key)
    return files[real_path]


def _read_coco(path: str, key: str) -> CocoFile:
    try:
        with open(path, encoding='utf-8') as file:
            content = json.load(file)
    except (OSError, ValueError) as error:
        raise DataError(
            f'{key}.ann_file: {path} cannot be read as JSON ({error}). '
            'Restore the file; it may have been copied in part.'
        ) from error

    def entries(name: str, keys: set[str]) -> list[dict]:
        found = content.get(name) if isinstance(content, dict) else None
        if not isinstance(found, list):
            raise DataError(
                f"{key}.ann_file: {path} is not a COCO annotation file: it has no list '{name}'. "
                "Name an instances file in COCO's format, or convert yours to it."
            )
        for i, entry in enumerate(found):
            if not (isinstance(entry, dict) and keys <= entry.keys()):
                lacking = sorted(keys.difference(entry if isinstance(entry, dict) else ()))
                raise DataError(
                    f'{key}.ann_file: {path} is not a COCO annotation file: {name}[{i}] has no '
                    f"'{lacking[0]}'. Add it to every entry of '{name}'."
                )
        return found

    images = entries('images', IMAGE_KEYS)
    categories = entries('categories', CATEGORY_KEYS)
    # The files of COCO's test images have none.
    has_annotations = 'annotations' in content
    annotations = entries('annotations', ANNOTATION_KEYS) if has_annotations else []
    if not images:
        raise DataError(
            f'{key}.ann_file: {path} lists no images. Name an annotation file that does.'
        )
    unknown = {entry['category_id'] for entry in annotations} - {c['id'] for c in categories}
    if unknown:
        raise DataError(
            f'{key}.ann_file: {path} uses the category ids {_few(sorted(unknown))}, which its list '
            "'categories' does not have. Add them there."
        )
    return CocoFile(
        categories=tuple(category['name'] for category in categories),
        image_ids=frozenset(image['id'] for image in images),
        file_names=tuple(image['file_name'] for image in images),
        has_annotations=bool(annotations),
        has_iscrowd=all('iscrowd' in entry for entry in annotations),
    )


def _check_categories(key: str, classes: Sequence[str], file: CocoFile, path: str) -> None:
    wanted = set(classes)
    in_file = [name for name in file.categories if name in wanted]
    if in_file == list(classes):
        return
    # `metainfo` belongs to the data set; its evaluator takes the classes from there.
    dataset = key if '_dataloader' in key else f'{key.split("_")[0]}_dataloader.dataset'
    lacking = [name for name in classes if name not in in_file]
    if lacking:
        raise DataError(
            f'{key}.ann_file: {path} does not have {len(lacking)} of the {len(classes)} classes of '
            f'{dataset}: {_few(lacking)}. It has {len(file.categories)} categories: '
            f'{_few(file.categories)}. Set {dataset}.metainfo=dict(classes=...) to those, and '
            'model.bbox_head.num_classes to their number.'
        )
    # MMDetection numbers the classes as the file lists them, and names them as `classes` does.
    raise DataError(
        f'{key}.ann_file: {path} lists the categories in another order than '
        f'{dataset}.metainfo.classes: {_first_difference(in_file, classes)}, so labels would get '
        'wrong names. List them in the order of the file, the same for every data set.'
    )


def _check_images(key: str, dataset: CocoDataset, file: CocoFile) -> None:
    # One listing per folder: asking for each of 118,000 files takes minutes on a network disk.
    names = defaultdict(list)
    for file_name in file.file_names:
        folder, name = os.path.split(os.path.join(dataset.data_prefix['img'], file_name))
        names[folder].append(name)
    missing = []
    for folder, listed in names.items():
        present = set(os.listdir(folder or '.')) if os.path.isdir(folder or '.') else set()
        missing += [os.path.join(folder, name) for name in listed if name not in present]
    if missing:
        raise DataError(
            f'{key}: {len(missing)} of the {len(file.file_names)} images that {dataset.ann_file} '
            f'lists do not exist: {_few(missing)}. Restore them, point {key}.data_prefix.img to '
            'their folder, or take them out of the annotation file.'
        )


def _check_checkpoint(
    cfg: Config, datasets: Sequence[tuple[str, CocoDataset]], fine_tuning: bool
) -> None:
    path = cfg.get('load_from')
    if not path or not _is_local(path, None):
        return
    checkpoint = _read_checkpoint(os.path.expanduser(path))
    state = checkpoint.get('state_dict', checkpoint)
    names = [str(name).removeprefix('module.') for name in state]
    # A model without a backbone of its own wraps another, whose weights have other names.
    if 'backbone' in cfg.model and not any(name.split('.')[0] in cfg.model for name in names):
        raise ConfigError(
            f'checkpoint {path} holds no weights of {cfg.model.type} (top level: '
            f'{_few(list(checkpoint))}). Name a checkpoint of this model; one of the reference '
            'implementation is converted with tools/convert_checkpoint.py.'
        )
    if cfg.get('resume') and not {'meta', 'message_hub'} <= checkpoint.keys():
        raise ConfigError(
            f'checkpoint {path} holds weights only, so training cannot resume from it. Start from '
            f'its weights instead: leave out --resume and set load_from={path} (--cfg-options).'
        )
    # MMEngine leaves weights out that do not fit, with no more than a warning.
    remedy = 'Use a checkpoint of a model trained on these categories, or set the config to its.'
    if fine_tuning:
        remedy += (
            " To fine-tune on other categories, start from a copy of it without 'meta' and "
            "without 'bbox_head.fc_cls.*' in 'state_dict'."
        )
    head = cfg.model.get('bbox_head', {})
    weight = state.get('bbox_head.fc_cls.weight', state.get('module.bbox_head.fc_cls.weight'))
    if weight is not None and 'num_classes' in head:
        loss = head.get('loss_cls', {})
        # A softmax scores "no object" too.
        background = not loss.get('use_sigmoid', 'FocalLoss' in str(loss.get('type')))
        if len(weight) != head.num_classes + background:
            raise ConfigError(
                f'checkpoint {path} scores {len(weight) - background} classes, but '
                f'model.bbox_head.num_classes is {head.num_classes}. {remedy}'
            )
    trained_on = _checkpoint_classes(checkpoint)
    for key, dataset in datasets:
        classes = list(dataset.metainfo['classes'])
        if trained_on and trained_on != classes:
            raise ConfigError(
                f'checkpoint {path} was trained on {len(trained_on)} classes, {key} has '
                f'{len(classes)}; {_first_difference(trained_on, classes)}. {remedy}'
            )


def _read_checkpoint(path: str) -> dict:
    if not os.path.isfile(path):
        raise ConfigError(
            f'checkpoint {os.path.abspath(path)} does not exist. Give the path of a checkpoint, '
            'as training writes it to its work directory.'
        )
    # Once more: after whatever it loads, onedl-mmengine takes its safe classes off PyTorch's list.
    safe_globals.register()
    try:
        # Tensors stay on disk where the format allows it: only names and shapes are looked at.
        checkpoint = torch.load(
            path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except Exception as error:
        unsafe = re.search(r'Unsupported global: GLOBAL (\S+)', str(error))
        raise ConfigError(
            f'checkpoint {path} holds a {unsafe[1]}, which PyTorch does not load from files that '
            "are not trusted. Save its weights alone: torch.save({'state_dict': ...}, file)."
            if unsafe
            else f'checkpoint {path} cannot be read: it is truncated, or no checkpoint of PyTorch. '
            'Copy it again, or name another.'
        ) from error
    if not isinstance(checkpoint, dict):
        raise ConfigError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, not the weights of a model. '
            'Name a checkpoint as training writes it to its work directory.'
        )
    return checkpoint


def _checkpoint_classes(checkpoint: dict) -> list[str] | None:
    meta = checkpoint.get('meta', {})
    # MMDetection 3 stores the names below `dataset_meta` (a list of them after training on several
    # unlike data sets), MMDetection 2 stored them as `CLASSES`.
    dataset_meta = meta.get('dataset_meta', meta)
    if not isinstance(dataset_meta, dict):
        return None
    classes = dataset_meta.get('classes', dataset_meta.get('CLASSES'))
    return list(classes) if isinstance(classes, (list, tuple)) else None


def _first_difference(there: Sequence[str], here: Sequence[str]) -> str:
    pairs = enumerate(zip_longest(there, here))
    i, (name, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    return f'class {i} is {name!r} there and {other!r} here'


def _few(names: Sequence, limit: int = 5) -> str:
    shown = ', '.join(map(str, names[:limit]))
    return shown if len(names) <= limit else f'{shown}, ... ({len(names)} in all)'
