"""Checkpoints that a run starts from, checked against its config and its model."""

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
from mmsmca.errors import ConfigError, few

from .keys import walk


def is_local(path: str, backend_args: dict | None = None) -> bool:
    """Whether a path is one of this machine's file system."""
    return not backend_args and '://' not in path


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
        model: The model that it describes.
        datasets: Data sets of the run, by their keys.
        fine_tuning: Whether a model is trained that may differ from the checkpoint's.

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
            'a model. Name a checkpoint as training writes it to its work directory.'
        )
    names = [str(name).removeprefix('module.') for name in state]
    # A model without a backbone of its own wraps another, whose weights have other names.
    if 'backbone' in cfg.model and not any(name.split('.')[0] in cfg.model for name in names):
        raise ConfigError(
            f'checkpoint {path} holds no weights of {cfg.model.type} (top level: '
            f'{few(list(checkpoint))}). Name a checkpoint of this model; one of the reference '
            'implementation is converted with tools/convert_checkpoint.py.'
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
            'categories, or set the config to its.'
        )
    _check_weights(path, state, model, fine_tuning)


def check_pretrained(model: ConfigDict) -> None:
    """Check the files of ``init_cfg=dict(type='Pretrained', checkpoint=...)`` in a config's model.

    MMEngine looks for them after everything else is built, and onedl-mmengine executes what they
    hold if they hold more than data.

    Raises:
        ConfigError: If a local file is not there, or is not one that :func:`.files.read` reads.
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
                f'checkpoint {path} holds NaN or infinity in {name}: its training has diverged. '
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
                f'checkpoint {path} is of another model: {name} is '
                f'{"missing" if there is None else f"of shape {there}"}, and of shape '
                f'{tuple(own.shape)} in the config. Use the config that it was trained with; a '
                'copy lies in the work directory of that training.'
            )
