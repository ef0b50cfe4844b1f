"""One training step before a run: it finds what only shows when data flow through the model."""

import copy
import io
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.logging import MessageHub, MMLogger
from mmengine.optim import build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from torch import nn

from mmsmca.errors import ConfigError, UserError, one_line

# What MMEngine's other optimizer wrappers have too; those of mixed precision and of strategies ask
# for an accelerator or for the strategy.
OPTIMIZER_KEYS = ('optimizer', 'paramwise_cfg', 'clip_grad', 'constructor')
LOADER_KEYS = ('dataset', 'collate_fn', 'batch_size', 'sampler', 'batch_sampler')
SHUFFLING_SAMPLERS = ('DefaultSampler', 'InfiniteSampler')


def trial_step(cfg: Config) -> None:
    """Train the model of a config, as it is initialised, for one step, and forget it.

    The step is made on the first images of the training data, two or as many as the batch has, in
    float32, on the device that the run would take. No weights are read or downloaded. Random
    generators, MMEngine's logs and the registries are left as they were, and no file is written.

    Args:
        cfg: The config as it will run; not changed.

    Raises:
        ConfigError: If the step fails. The message names the config, the error, and the module of
            the model or the transform of the data where it happened.
        DataError: If an image cannot be read.
    """
    name = f'{cfg.filename}: ' if cfg.filename else ''
    cfg = copy.deepcopy(cfg)
    names: dict[int, str] = {}
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet'))
    with _nothing_left_behind(), scope:
        try:
            batch = next(iter(Runner.build_dataloader(_first_images(cfg.train_dataloader))))
            model = MODELS.build(_without_pretrained(cfg.model))
            names = {id(module): path for path, module in model.named_modules() if path}
            model.init_weights()
            model.to(get_device()).train()
            settings = {key: cfg.optim_wrapper.get(key) for key in OPTIMIZER_KEYS}
            given = {key: value for key, value in settings.items() if value is not None}
            model.train_step(batch, build_optim_wrapper(model, ConfigDict(given)))
        except UserError:
            raise
        except Exception as error:
            raise ConfigError(
                f'{name}the first training step fails{_place(error, names)}: {one_line(error)}. '
                'Correct the config; --no-trial-step starts all the same.'
            ) from error


def _first_images(loader: ConfigDict) -> ConfigDict:
    """The data loader of the config, for one small batch in this process."""
    kept = {key: loader[key] for key in LOADER_KEYS if key in loader}
    # Any other sampler composes batches as its model needs them.
    if loader.get('sampler', {}).get('type', 'DefaultSampler') in SHUFFLING_SAMPLERS:
        kept['batch_size'] = min(2, loader.get('batch_size', 2))
        kept['sampler'] = dict(type='DefaultSampler', shuffle=False)
        kept.pop('batch_sampler', None)
    return ConfigDict(kept, num_workers=0)


def _without_pretrained(node: Any) -> Any:
    """A config's node with ``init_cfg=None`` wherever it names weights to load."""
    if isinstance(node, dict):
        return ConfigDict(
            {
                key: None
                if key == 'init_cfg' and 'Pretrained' in str(value)
                else _without_pretrained(value)
                for key, value in node.items()
            }
        )
    if isinstance(node, (list, tuple)):
        return type(node)(map(_without_pretrained, node))
    return node


def _place(error: Exception, names: dict[int, str]) -> str:
    """Where an error happened: the innermost module of the model, or transform, on its way."""
    place = ''
    trace = error.__traceback__
    while trace is not None:
        owner = trace.tb_frame.f_locals.get('self')
        if isinstance(owner, nn.Module) and id(owner) in names:
            place = f' in model.{names[id(owner)]}'
        elif isinstance(owner, BaseTransform):
            place = f' in the transform {type(owner).__name__}'
        trace = trace.tb_next
    return place


@contextmanager
def _nothing_left_behind() -> Iterator[None]:
    """Give back random states and MMEngine's global objects, and keep what is printed quiet."""
    managers = (MessageHub, MMLogger)
    instances = [manager._instance_dict.copy() for manager in managers]
    states = random.getstate(), np.random.get_state()
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            torch.random.fork_rng(devices),
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
        ):
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(disabled)
        random.setstate(states[0])
        np.random.set_state(states[1])
        for manager, before in zip(managers, instances, strict=True):
            manager._instance_dict.clear()
            manager._instance_dict.update(before)
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
