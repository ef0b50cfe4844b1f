"""Checks of the checkpoints that a run starts from against its config and model."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.runner import find_latest_checkpoint
from torch import Tensor

from mmsmca.checkpoints.classes import CLASSIFIER, other_classes
from mmsmca.checkpoints.files import read
from mmsmca.errors import ConfigError, shorten

from .keys import walk


def is_local(path: str, backend_args: dict | None = None) -> bool:
    """Whether a path is on this machine's file system."""
    return not backend_args and '://' not in path


def latest_checkpoint(work_dir: str) -> str | None:
    """Find the checkpoint to resume from, whatever ended the run.

    This is the checkpoint that MMEngine names in ``last_checkpoint``. If a run was killed while
    writing, that checkpoint may be truncated or missing, or ``last_checkpoint`` itself missing or
    empty. In those cases, it is the newest complete checkpoint that training wrote to the folder.

    Args:
        work_dir: Work directory of the run.

    Returns:
        Path of a complete checkpoint, or the URL in ``last_checkpoint``, which is not checked. If
        no checkpoint is complete, the path in ``last_checkpoint``, or None without one.
    """
    named = find_latest_checkpoint(work_dir) or None
    if named and not is_local(named):
        return named
    written = [path for kind in ('epoch', 'iter') for path in Path(work_dir).glob(f'{kind}_*.pth')]
    newest_first = sorted(written, key=lambda path: path.stat().st_mtime, reverse=True)
    for path in filter(None, (named, *map(str, newest_first))):
        try:
            read(path)
        except ConfigError as error:
            print(f'Not resumed from: {error}', file=sys.stderr)
        else:
            return path
    return named


def check_checkpoint(
    cfg: Config,
    model: BaseModel,
    datasets: Sequence[tuple[str, CocoDataset]],
    fine_tuning: bool,
) -> None:
    """Check ``cfg.load_from``, if it is a file, against the model and the classes of the data.

    Args:
        cfg: The config as it will run.
        model: The model built from it.
        datasets: Data sets of the run, with their config keys.
        fine_tuning: Whether the run trains a model that may differ from the checkpoint's.

    Raises:
        ConfigError: If the run cannot start from the checkpoint.
    """
    path = cfg.get('load_from')
    if not path or not is_local(path):
        return
    checkpoint = read(os.path.expanduser(path))
    state = checkpoint.get('state_dict', checkpoint)
    if not isinstance(state, dict):
        raise ConfigError(
            f"checkpoint {path} holds a {type(state).__name__} as 'state_dict', not the weights of "
            'a model. Specify a checkpoint that training wrote to its work directory.'
        )
    names = [str(name).removeprefix('module.') for name in state]
    # A model without a backbone wraps another model, whose weights have other names.
    if 'backbone' in cfg.model and not any(name.split('.')[0] in cfg.model for name in names):
        raise ConfigError(
            f'checkpoint {path} holds no weights of {cfg.model.type} (top level: '
            f'{shorten(list(checkpoint))}). Specify a checkpoint of this model; convert one of the '
            'reference implementation with tools/convert_checkpoint.py.'
        )
    if cfg.get('resume') and not {'meta', 'message_hub'} <= checkpoint.keys():
        raise ConfigError(
            f'checkpoint {path} holds weights only, so training cannot resume from it. Start from '
            f'its weights instead: leave out --resume and set load_from={path} (--cfg-options).'
        )
    difference = other_classes(
        checkpoint,
        cfg.model.get('bbox_head', {}),
        {key: dataset.metainfo['classes'] for key, dataset in datasets},
    )
    # In training, `FreshClassifierHook` leaves the classifier out.
    if difference and not (fine_tuning and any(map(CLASSIFIER.search, names))):
        raise ConfigError(
            f'checkpoint {path} {difference}. Use a checkpoint of a model trained on these '
            'categories, or change the config to match it.'
        )
    _check_weights(path, state, model, fine_tuning)


def check_pretrained(model: ConfigDict) -> None:
    """Check the files of ``init_cfg=dict(type='Pretrained', checkpoint=...)`` in a config's model.

    MMEngine only opens them once everything else is built, and onedl-mmengine executes any code in
    them.

    Raises:
        ConfigError: If a local file is missing, or :func:`.files.read` refuses it.
    """
    for key, node in walk(model, 'model'):
        path = node.get('checkpoint') if isinstance(node, dict) else None
        if isinstance(path, str) and node.get('type') == 'Pretrained' and is_local(path):
            try:
                read(os.path.expanduser(path))
            except ConfigError as error:
                raise ConfigError(f'{key}: {error}') from error


def _check_weights(
    path: str, state: dict[str, Tensor], model: BaseModel, fine_tuning: bool
) -> None:
    weights = {str(name).removeprefix('module.'): weight for name, weight in state.items()}
    for name, weight in weights.items():
        if torch.is_tensor(weight) and not weight.isfinite().all():
            raise ConfigError(
                f'checkpoint {path} holds NaN or infinity in {name}: its training diverged. '
                'Use an earlier checkpoint, and train with a lower learning rate.'
            )
    if fine_tuning:
        return
    for name, own in model.state_dict().items():
        if name.endswith('num_batches_tracked'):  # absent from old checkpoints, and not needed
            continue
        there = tuple(weights[name].shape) if name in weights else None
        if there != tuple(own.shape):
            raise ConfigError(
                f'checkpoint {path} is from another model: {name} '
                f'{"is missing" if there is None else f"has shape {there}"}, but has shape '
                f'{tuple(own.shape)} in the config. Use the config that it was trained with; a '
                'copy is in the work directory of that training run.'
            )
