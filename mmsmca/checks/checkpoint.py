"""Checks of the checkpoints that a run starts from against its config and model."""

import os
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmdet.datasets import CocoDataset
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from torch import Tensor

from mmsmca.checkpoints.classes import CLASSIFIER, other_classes
from mmsmca.checkpoints.files import read
from mmsmca.errors import ConfigError, Fault, shorten
from mmsmca.models.backbones.transformers_backbone import TransformersBackbone

from .config import walk


def is_local(path: str, backend_args: dict | None = None) -> bool:
    """Whether a path is on this machine's file system."""
    return not backend_args and '://' not in path


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
    if path is None or not is_local(path):
        return
    if path == '':  # MMEngine's hook writes the file in place.
        raise ConfigError(
            "the file last_checkpoint in the run's work_dir is empty. Name the checkpoint: "
            '--resume PATH.'
        )
    try:
        checkpoint = read(os.path.expanduser(path))
    except ConfigError as error:
        earlier = ' To resume from an earlier checkpoint, name it: --resume PATH.'
        raise ConfigError(f'{error}{earlier if cfg.get("resume") else ""}') from error
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
    needed = ['meta', 'message_hub', 'optimizer', 'param_schedulers']
    if not cfg.get('param_scheduler'):
        needed.remove('param_schedulers')
    lacking = [key for key in needed if key not in checkpoint]
    if cfg.get('resume') and lacking:
        raise ConfigError(
            f'checkpoint {path} lacks {", ".join(lacking)}, so training cannot resume from it; '
            "MMEngine leaves this out of best_*.pth. Resume from one of the run's epoch_*.pth or "
            'iter_*.pth, or start from its weights: leave out --resume and set '
            f'load_from={path} (--cfg-options).'
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


def pretrained_faults(model: ConfigDict) -> Iterator[Fault]:
    """Check the files of ``init_cfg=dict(type='Pretrained', checkpoint=...)`` in a config's model.

    MMEngine only opens them once everything else is built, and onedl-mmengine executes any code in
    them.

    Yields:
        Local files that are missing, or that :func:`.files.read` refuses.
    """
    for key, node in walk(model, 'model'):
        path = node.get('checkpoint') if isinstance(node, dict) else None
        if isinstance(path, str) and node.get('type') == 'Pretrained' and is_local(path):
            try:
                read(os.path.expanduser(path))
            except ConfigError as error:
                yield ConfigError(f'{key}: {error}')


def normalisation_faults(preprocessor: dict, model: BaseModel) -> Iterator[Fault]:
    """Find out whether a pretrained backbone of transformers gets images as it was trained on.

    Args:
        preprocessor: ``model.data_preprocessor`` of the config.
        model: The model built from it.

    Yields:
        An error if mean, standard deviation or order of the channels differ.
    """
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, TransformersBackbone):
        return
    expected = backbone.normalisation()
    if expected is None:
        return
    given = {key: preprocessor.get(key) or [] for key in expected}
    close = all(np.allclose(given[key], expected[key], atol=0.1) for key in expected if given[key])
    if not all(given.values()) or not close or not preprocessor.get('bgr_to_rgb'):
        wanted = ', '.join(f'{key}={np.round(x, 3).tolist()}' for key, x in expected.items())
        yield ConfigError(
            f'model.data_preprocessor has mean={given["mean"]}, std={given["std"]}, bgr_to_rgb='
            f'{preprocessor.get("bgr_to_rgb", False)}, but the weights of backbone.model='
            f'{backbone.name!r} were trained on other images. Set {wanted}, bgr_to_rgb=True.'
        )


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
    # Test-time augmentation wraps the model whose weights these are.
    own_weights = {name.removeprefix('module.'): w for name, w in model.state_dict().items()}
    for name, own in own_weights.items():
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
