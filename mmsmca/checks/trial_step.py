"""A step of training and validation before a run, to find errors that only real data reveal."""

import copy
import io
import logging
import random
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from traceback import walk_tb
from unittest.mock import patch

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.evaluation import CocoMetric
from mmdet.registry import HOOKS, METRICS, MODELS, PARAM_SCHEDULERS, VISUALIZERS
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.evaluator import Evaluator
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch import nn

from mmsmca.engine.quiet import quiet
from mmsmca.errors import ConfigError, UserError, one_line

from .keys import suggestion, walk

# Keys that all of MMEngine's optimizer wrappers accept. The trial uses the basic wrapper: those for
# mixed precision and for strategies need an accelerator or the strategy.
OPTIMIZER_KEYS = ('optimizer', 'paramwise_cfg', 'clip_grad', 'constructor')
LOADER_KEYS = ('dataset', 'collate_fn', 'batch_size', 'sampler', 'batch_sampler')
SHUFFLING_SAMPLERS = ('DefaultSampler', 'InfiniteSampler')


def trial_step(cfg: Config) -> None:
    """Train a config's freshly initialised model for one step, evaluate it, and discard it.

    The step uses the first images of the training data (at most two, unless a sampler of another
    kind composes the batch), in float32, on the device that the run would use. If the run
    validates, predictions on the first images of the validation data are evaluated. Hooks and
    schedulers are built. No weights are read or downloaded. Random generators, MMEngine's logs and
    the registries are left unchanged, and no file is written.

    Args:
        cfg: The config as it will run; not changed.

    Raises:
        ConfigError: If any of this fails. The message names the config, the error, and the module
            of the model or the data transform where it occurred. Also if a hook needs a metric
            that the evaluator does not compute.
        DataError: If an image cannot be read.
    """
    name = f'{cfg.filename}: ' if cfg.filename else ''
    cfg = copy.deepcopy(cfg)
    names: dict[int, str] = {}
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet'))
    with _nothing_left_behind(), scope:
        stage = 'the first training step'
        try:
            batch = next(iter(Runner.build_dataloader(_first_images(cfg.train_dataloader))))
            for _, node in walk(cfg.model, 'model'):
                if isinstance(node, dict) and 'Pretrained' in str(node.get('init_cfg')):
                    node['init_cfg'] = None
            model = MODELS.build(cfg.model)
            names = {id(module): path for path, module in model.named_modules() if path}
            model.init_weights()
            model.to(get_device()).train()
            settings = {key: cfg.optim_wrapper.get(key) for key in OPTIMIZER_KEYS}
            given = {key: value for key, value in settings.items() if value is not None}
            wrapper = build_optim_wrapper(model, ConfigDict(given))
            model.train_step(batch, wrapper)
            stage = 'building param_scheduler'
            _build_schedulers(cfg, wrapper)
            stage = 'building the hooks'
            hooks = _build_hooks(cfg)
            if all(cfg.get(f'val_{part}') for part in ('dataloader', 'evaluator', 'cfg')):
                stage = 'the first validation'
                _check_waiting(hooks, _metrics(cfg, model))
        except UserError:
            raise
        except Exception as error:
            raise ConfigError(
                f'{name}{stage} fails{_place(error, names)}: {one_line(error)}. '
                'Correct the config; --no-trial-step starts anyway.'
            ) from error


def _build_schedulers(cfg: Config, wrapper: OptimWrapper) -> None:
    listed = cfg.get('param_scheduler') or []
    for scheduler in listed if isinstance(listed, list) else [listed]:
        # With several optimizers this is a dict by optimizer, which is skipped.
        if 'type' in scheduler:
            epoch = scheduler.get('by_epoch', True)
            end = cfg.train_cfg.get('max_epochs' if epoch else 'max_iters', 10**9)
            known = dict(optimizer=wrapper, epoch_length=10**3)
            PARAM_SCHEDULERS.build(dict(dict(end=end), **scheduler), default_args=known)


def _build_hooks(cfg: Config) -> list[Hook]:
    if cfg.get('visualizer'):
        # Some hooks need it; without a folder it writes nothing.
        VISUALIZERS.build(dict(cfg.visualizer, name='trial', save_dir=None))
    nodes = [*(cfg.get('default_hooks') or {}).values(), *(cfg.get('custom_hooks') or [])]
    settings = [{k: v for k, v in node.items() if k != 'priority'} for node in nodes if node]
    return [HOOKS.build(node) for node in settings]


def _metrics(cfg: Config, model: BaseModel) -> dict[str, float]:
    """Metrics on the first images of the validation data."""
    loader = Runner.build_dataloader(_first_images(cfg.val_dataloader))
    batch = next(iter(loader))
    model.eval()
    with torch.no_grad():
        found = model.val_step(batch)
    nodes = cfg.val_evaluator if isinstance(cfg.val_evaluator, list) else [cfg.val_evaluator]
    # Skip metrics that only write a file, and evaluators that are not metrics.
    nodes = [dict(node) for node in nodes if not node.get('format_only') and node.type in METRICS]
    for node in nodes:
        if node.get('outfile_prefix'):
            node['outfile_prefix'] = None
    evaluator = Evaluator(nodes)
    evaluator.dataset_meta = loader.dataset.metainfo
    for metric in evaluator.metrics:
        if isinstance(metric, CocoMetric):
            metric.img_ids = [sample.img_id for sample in found]
    evaluator.process(data_samples=found, data_batch=batch)
    return evaluator.evaluate(len(found)) if nodes else {}


def _check_waiting(hooks: list[Hook], metrics: dict[str, float]) -> None:
    for hook in hooks:
        for key in ('save_best', 'monitor'):
            wanted = getattr(hook, key, None) or []
            for name in [wanted] if isinstance(wanted, str) else wanted:
                if metrics and name != 'auto' and name not in metrics:
                    raise ConfigError(
                        f'{type(hook).__name__}.{key} is {name!r}, which the evaluator does not '
                        f'report{suggestion(name, metrics)}'
                    )


def _first_images(loader: ConfigDict) -> ConfigDict:
    """The config of the data loader, reduced to one small batch in this process."""
    kept = {key: loader[key] for key in LOADER_KEYS if key in loader}
    # Other samplers compose batches as their model needs them.
    if loader.get('sampler', {}).get('type', 'DefaultSampler') in SHUFFLING_SAMPLERS:
        kept['batch_size'] = min(2, loader.get('batch_size', 2))
        kept['sampler'] = dict(type='DefaultSampler', shuffle=False)
        kept.pop('batch_sampler', None)
    return ConfigDict(kept, num_workers=0)


def _place(error: Exception, names: dict[int, str]) -> str:
    """Where an error occurred: the innermost module or transform in its traceback."""
    place = ''
    for frame, _ in walk_tb(error.__traceback__):
        owner = frame.f_locals.get('self')
        if isinstance(owner, nn.Module) and id(owner) in names:
            place = f' in model.{names[id(owner)]}'
        elif isinstance(owner, BaseTransform):
            place = f' in the transform {type(owner).__name__}'
    return place


@contextmanager
def _nothing_left_behind() -> Iterator[None]:
    """Restore random states and MMEngine's global objects afterwards, and suppress all output."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with ExitStack() as stack:
        for manager in (MessageHub, MMLogger, Visualizer, *Visualizer.__subclasses__()):
            stack.enter_context(patch.dict(manager._instance_dict, clear=True))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(torch.cuda.empty_cache)  # No effect without a GPU.
        stack.enter_context(quiet(logging.WARNING))
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(redirect_stdout(io.StringIO()))
        warnings.simplefilter('ignore')
        yield
