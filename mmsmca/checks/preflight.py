"""Checks of a config before the first iteration.

Mistakes that would otherwise end a run with a traceback minutes later (a wrong path, categories of
another data set, a checkpoint of another model) end it at once with one line that names the key or
file and the remedy.

Images are not opened before the run: that would take many minutes for COCO's 118,000. An image that
cannot be decoded (with OpenCV 4.12, any truncated JPEG or PNG) ends the run when it is loaded, with
an error that names it: see :mod:`.load_image`. A JPEG damaged in the middle decodes to wrong pixels
without any error.
"""

import copy
import difflib
import os
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmdet.models.dense_heads import DETRHead
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.runner import find_latest_checkpoint

from mmsmca.errors import ConfigError, one_line, shorten
from mmsmca.models.dense_heads.few_queries import FewQueries

from .checkpoint import check_checkpoint, check_pretrained
from .data import check_files, find_data
from .keys import TOP_LEVEL, check_keys, described, walk
from .schedule import check_schedule

# Phases whose data loaders and evaluators each script uses.
PHASES = {'train': ('train', 'val'), 'test': ('test',)}
# Config keys that each phase requires.
SECTIONS = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}


def check_config(cfg: Config, phases: Sequence[str]) -> None:
    """Check what a run needs before it starts: data, categories and checkpoint.

    Not checked are data sets that do not read their annotations as ``CocoDataset`` does, data
    behind ``backend_args`` or a URL, and checkpoints at a URL. Nothing is written.

    Args:
        cfg: The config as it will run. ``cfg.load_from`` is the checkpoint, if any, and
            ``cfg.resume`` says whether training continues from it.
        phases: Which of "train", "val" and "test" the run uses.

    Raises:
        ConfigError: If keys of the config, or config and checkpoint, do not fit together.
        DataError: If annotations or images are missing or cannot be used.
    """
    _check_sections(cfg, phases)
    datasets, evaluators = find_data(cfg, phases)
    if 'train' in phases:
        check_pretrained(cfg.model)
    model = _build_model(cfg)
    check_keys(cfg, phases, model)
    _check_detections(cfg.model, model)
    check_checkpoint(cfg, model, datasets, fine_tuning='train' in phases and not cfg.get('resume'))

    images = check_files(datasets, evaluators, cfg.model)
    if 'train' in phases:
        check_schedule(cfg, images)


def effective_config(args: Namespace) -> Config:
    """Load the config as MMDetection's script would run it, as far as the checks need it.

    Args:
        args: What ``parse_args`` of MMDetection's ``tools/train.py`` or ``tools/test.py`` returns.

    Returns:
        The config with ``--cfg-options`` merged; ``load_from`` is the checkpoint that the run
        starts from, or None, and ``resume`` says whether the run resumes from it. For ``--resume``
        without a path, the checkpoint is the one in ``last_checkpoint``; if there is none yet, the
        run starts as it would without ``--resume``.

    Raises:
        ConfigError: If the config file does not exist, or it or an option is wrong.
    """
    if not os.path.isfile(args.config):
        raise ConfigError(
            f'config {args.config} does not exist. Give the path of a config file, or use '
            "`mim`, which finds mmsmca's configs by their file name."
        )
    try:
        cfg = Config.fromfile(args.config)
    except Exception as error:  # a config is Python code
        raise ConfigError(
            f'config {args.config} cannot be read ({one_line(error)}). Correct the file, or the '
            'one that it inherits from.'
        ) from error
    if args.cfg_options is not None:
        merge_options(cfg, args.cfg_options)
    # By default, MMEngine would look up MMDetection's classes in its own registries.
    cfg.setdefault('default_scope', 'mmdet')
    if 'checkpoint' in args:
        cfg.load_from, cfg.resume = args.checkpoint, False
        return cfg
    if args.resume not in (None, 'auto'):
        cfg.load_from, cfg.resume = args.resume, True
    elif args.resume == 'auto' or (cfg.get('resume') and cfg.get('load_from') is None):
        default = os.path.join('work_dirs', Path(args.config).stem)
        latest = find_latest_checkpoint(args.work_dir or cfg.get('work_dir') or default)
        cfg.load_from = cfg.get('load_from') if latest is None else latest
        cfg.resume = latest is not None
    return cfg


def merge_options(cfg: Config, options: dict, where: str = '--cfg-options') -> None:
    """Merge ``--cfg-options``, refusing keys that nothing reads: most of those are misspelt.

    Args:
        cfg: The config, changed in place.
        options: Values by key, with dots between the levels.
        where: Where the user wrote them. Defaults to the command line.

    Raises:
        ConfigError: If nothing reads the key, or the value cannot be merged.
    """
    known = sorted({*cfg, *TOP_LEVEL})
    for option in options:
        name = option.split('.')[0]
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ConfigError(
                f'{where} {option}: the config has no {name}'
                + (f'; did you mean {close[0]}?' if close else '. Correct the name.')
            )
        if name not in TOP_LEVEL:
            places = _places(cfg, cfg[name], name)
            raise ConfigError(
                f'{where} {option}: {name} is a variable of the config, which nothing reads once '
                'the config is loaded. '
                + (
                    f'Set the keys with its value: {shorten(places, 8)}.'
                    if places
                    else 'Leave it out.'
                )
            )
        try:
            cfg.merge_from_dict({option: options[option]})
        except Exception as error:
            raise ConfigError(
                f'{where} {option}={options[option]!r} cannot be merged ({one_line(error)}). '
                'Correct the key; `mim run mmdet print_config CONFIG` lists all keys.'
            ) from error


def _places(cfg: Config, value: Any, name: str) -> list[str]:
    """Keys whose value equals a variable's (or contains it, if text); those of its name first."""

    def has(node: Any) -> bool:
        text = isinstance(value, str) and isinstance(node, str) and bool(value)
        return value in node if text else type(node) is type(value) and node == value

    found = [
        place for key in cfg if key in TOP_LEVEL for place, node in walk(cfg[key], key) if has(node)
    ]
    named = [place for place in found if place.split('.')[-1] == name]
    # If a key has the variable's name, equal values in the model are a coincidence.
    others = [p for p in found if p not in named and not (named and p.startswith('model.'))]
    return named + others


def _check_sections(cfg: Config, phases: Sequence[str]) -> None:
    if 'model' not in cfg:
        raise ConfigError(
            "the config has no key 'model'. Specify a complete config; those in _base_ folders "
            'are only parts of others.'
        )
    for phase in phases:
        lacking = [name for name in SECTIONS[phase] if cfg.get(name) is None]
        # A run without validation is fine, one with an incomplete validation is not.
        if lacking and (phase != 'val' or len(lacking) < len(SECTIONS[phase])):
            raise ConfigError(
                f'the config has no {" and no ".join(lacking)}, without which it cannot {phase}. '
                'Set it, or inherit (_base_) from a config that has it.'
            )


def _build_model(cfg: Config) -> BaseModel:
    """Build the model, which reveals most wrong values in its config."""
    try:
        # Some models modify their config.
        return MODELS.build(copy.deepcopy(cfg.model))
    except Exception as error:
        raise ConfigError(
            f'model: {described(error)}. Correct the model in the config or with '
            '--cfg-options model.*.'
        ) from error


def _check_detections(node: ConfigDict, model: BaseModel) -> None:
    """Refuse more detections than MMDetection's DETR heads can choose from; ours return fewer."""
    head = getattr(model, 'bbox_head', None)
    wanted = (node.get('test_cfg') or {}).get('max_per_img')
    if not isinstance(head, DETRHead) or isinstance(head, FewQueries) or wanted is None:
        return
    scores = model.num_queries * (head.num_classes if head.loss_cls.use_sigmoid else 1)
    if wanted > scores:
        raise ConfigError(
            f'model.test_cfg.max_per_img is {wanted}, but {model.num_queries} queries give '
            f'{scores} scores to choose from. Set it to at most {scores}.'
        )
