"""Checks of a config before the first iteration.

What would otherwise end a run with a trace minutes later (a wrong path, categories of another data
set, a checkpoint of another model) ends it at once with one line that names the key or the file and
the remedy.

Images are not opened before the run: that takes many minutes for COCO's 118,000. One that cannot be
decoded (any truncated JPEG or PNG, with OpenCV 4.12) ends the run when its turn comes, by its name:
see :mod:`.load_image`. A JPEG damaged in the middle decodes to wrong pixels, which nothing
notices.
"""

import copy
import difflib
import inspect
import os
from argparse import Namespace
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mmdet.datasets import CocoDataset
from mmdet.evaluation import CocoMetric
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import Registry
from mmengine.runner import Runner

from mmsmca.errors import ConfigError, DataError, few, first_difference, one_line

from .checkpoint import (
    check_checkpoint,
    check_pretrained,
    is_local,
    latest_checkpoint,
)
from .coco_file import CocoFile, duplicates, read_coco

# The data loaders and evaluators that each script uses.
PHASES = {'train': ('train', 'val'), 'test': ('test',)}
# What a phase cannot do without.
SECTIONS = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}
# Top-level keys that MMEngine and MMDetection read, besides the runner's arguments.
OTHER_KEYS = {
    'activation_checkpointing',
    'auto_scale_lr',
    'compile',
    'custom_imports',
    'efficient_conv_bn_eval',
    'find_unused_parameters',
    'model_wrapper_cfg',
    'runner_type',
    'strategy',
    'sync_bn',
    'tta_model',
    'tta_pipeline',
}


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
    _check_sections(cfg, phases)
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
    if 'train' in phases:
        check_pretrained(cfg.model, 'model')
    model = _build_model(cfg)
    check_checkpoint(cfg, model, datasets, fine_tuning='train' in phases and not cfg.get('resume'))

    files: dict[str, CocoFile] = {}
    for key, dataset in datasets:
        file = _read_once(files, dataset.ann_file, key)
        _check_categories(key, dataset.metainfo['classes'], file, dataset.ann_file)
        if not dataset.test_mode and not file.has_annotations:
            raise DataError(
                f'{key}.ann_file: {dataset.ann_file} has no annotations to train on. '
                "Name an annotation file that has a list 'annotations', with boxes in the images."
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
                    f'images of {dataset_key} (ids {few(sorted(unknown))}). Set {key}.ann_file to '
                    f"the data set's, {dataset.ann_file}."
                )


def effective_config(args: Namespace) -> Config:
    """The config as MMDetection's script runs it, as far as the checks are concerned.

    Args:
        args: What ``parse_args`` of MMDetection's ``tools/train.py`` or ``tools/test.py`` returns.

    Returns:
        The config with ``--cfg-options`` merged; ``load_from`` is the checkpoint that the run
        starts from, or None, and ``resume`` says whether the run goes on with it. With ``--resume``
        without a path that is :func:`.latest_checkpoint`; as long as there is none, the run starts
        as it would without ``--resume``.

    Raises:
        ConfigError: If there is no config file of that name, or it or an option is wrong.
    """
    if not os.path.isfile(args.config):
        raise ConfigError(
            f'config {args.config} does not exist. Give the path of a config file, or start with '
            '`mim`, which finds the configs of mmsmca by their file name.'
        )
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:  # a config is Python code
        raise ConfigError(
            f'config {args.config} cannot be read ({one_line(error)}). Correct the file, or the '
            'one that it inherits.'
        ) from error
    if args.cfg_options is not None:
        merge_options(cfg, args.cfg_options)
    if 'checkpoint' in args:
        cfg.load_from, cfg.resume = args.checkpoint, False
        return cfg
    if args.resume not in (None, 'auto'):
        cfg.load_from, cfg.resume = args.resume, True
    elif args.resume == 'auto' or (cfg.get('resume') and cfg.get('load_from') is None):
        default = os.path.join('work_dirs', Path(args.config).stem)
        latest = latest_checkpoint(args.work_dir or cfg.get('work_dir') or default)
        cfg.load_from, cfg.resume = latest or cfg.get('load_from'), latest is not None
    return cfg


def merge_options(cfg: Config, options: dict, where: str = '--cfg-options') -> None:
    """Merge ``--cfg-options``; one that nobody would read is most often misspelt.

    Args:
        cfg: The config, changed in place.
        options: Values by key, with dots between the levels.
        where: Where the user wrote them. Defaults to the command line.

    Raises:
        ConfigError: If the config has no such key, or the value does not fit there.
    """
    known = sorted({*cfg, *inspect.signature(Runner).parameters, *OTHER_KEYS})
    for option in options:
        name = option.split('.')[0]
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f'{where} {option}: the config has no {name}'
                + (f'; did you mean {close[0]}?' if close else '. Correct the name.')
            )
        try:
            cfg.merge_from_dict({option: options[option]})
        except Exception as error:
            raise ConfigError(
                f'{where} {option}={options[option]!r} cannot be merged ({one_line(error)}). '
                'Correct the key; `mim run mmdet print_config CONFIG` shows those there are.'
            ) from error


def _check_sections(cfg: Config, phases: Sequence[str]) -> None:
    if 'model' not in cfg:
        raise ConfigError(
            "the config has no key 'model'. Name a complete config; those in _base_ folders are "
            'parts of others.'
        )
    for phase in phases:
        lacking = [name for name in SECTIONS[phase] if cfg.get(name) is None]
        # A run without validation is fine, one that validates by halves is not.
        if lacking and (phase != 'val' or len(lacking) < len(SECTIONS[phase])):
            raise ConfigError(
                f'the config has no {" and no ".join(lacking)}, without which it cannot {phase}. '
                'Set it, or inherit (_base_) a config that does.'
            )
        if not lacking:
            _check_loader(f'{phase}_dataloader', cfg[f'{phase}_dataloader'])


def _check_loader(key: str, loader: ConfigDict) -> None:
    # Without a size, the loader has a batch sampler that knows it.
    for name, least in (('batch_size', 1), ('num_workers', 0)):
        value = loader.get(name, least)
        if not isinstance(value, int) or value < least:
            raise ConfigError(f'{key}.{name} is {value!r}. Set it to an integer, at least {least}.')
    if loader.get('persistent_workers') and not loader.get('num_workers'):
        raise ConfigError(
            f'{key}.persistent_workers is True, but {key}.num_workers is 0. '
            f'Set {key}.persistent_workers=False too.'
        )


def _build_model(cfg: Config) -> BaseModel:
    """Build the model, which is when most of its wrong values show."""
    try:
        # Some models write into their config.
        return MODELS.build(copy.deepcopy(cfg.model))
    except Exception as error:
        raise ConfigError(
            f"model: {one_line(error)}. Correct the config's model, or --cfg-options model.*."
        ) from error


def _class_of(node: ConfigDict, registry: Registry) -> type[Any]:
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
            try:
                dataset = DATASETS.build(dict(node, pipeline=[], lazy_init=True))
            except Exception as error:
                raise ConfigError(
                    f'{key}: {one_line(error)}. Correct its keys in the config, or '
                    f'--cfg-options {key}.*.'
                ) from error
            paths = (dataset.ann_file, *dataset.data_prefix.values())
            if all(is_local(path, dataset.backend_args) for path in paths):
                yield key, dataset


def _evaluators(node: ConfigDict | list | None, key: str) -> Iterator[tuple[str, ConfigDict]]:
    """Every COCO metric that reads a local annotation file, with its key."""
    if isinstance(node, list):
        for i, evaluator in enumerate(node):
            yield from _evaluators(evaluator, f'{key}.{i}')
    elif node is not None and issubclass(_class_of(node, METRICS), CocoMetric):
        if node.get('ann_file') and is_local(node.ann_file, node.get('backend_args')):
            yield key, node


def _check_classes(key: str, classes: Sequence[str] | None, model: ConfigDict) -> None:
    if classes is None or isinstance(classes, str):
        raise ConfigError(
            f'{key}.metainfo.classes is {classes!r}, and must be the sequence of the category '
            "names: metainfo=dict(classes=('first', 'second')); a single one is ('first',)."
        )
    if duplicates(classes):
        raise ConfigError(
            f'{key}.metainfo.classes lists {few(duplicates(classes))} more than once. '
            'List every category once.'
        )
    num_classes = model.get('bbox_head', {}).get('num_classes')
    if num_classes is not None and num_classes != len(classes):
        raise ConfigError(
            f'model.bbox_head.num_classes is {num_classes}, but {key} has {len(classes)} classes '
            f'({few(classes)}). Set model.bbox_head.num_classes={len(classes)}, or list the '
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
            f'{key}.ann_file: {path} has several categories of the name {few(repeated)}. '
            'Merge them, or give them different names.'
        )
    lacking = [name for name in classes if name not in in_file]
    if lacking:
        raise DataError(
            f'{key}.ann_file: {path} does not have {len(lacking)} of the {len(classes)} classes of '
            f'{dataset}: {few(lacking)}. It has {len(file.categories)} categories: '
            f'{few(file.categories)}. Set {dataset}.metainfo=dict(classes=...) to those, and '
            'model.bbox_head.num_classes to their number.'
        )
    # MMDetection numbers the classes as the file lists them, and names them as `classes` does.
    raise DataError(
        f'{key}.ann_file: {path} lists the categories in another order than '
        f'{dataset}.metainfo.classes: {first_difference(in_file, classes)}, so labels would get '
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
            f'lists do not exist: {few(missing)}. Restore them, point {key}.data_prefix.img to '
            'their folder, or take them out of the annotation file.'
        )
