"""A short run before a run, which finds the errors that only running reveals."""

import copy
import gc
import io
import logging
import math
import os
import random
import tempfile
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from itertools import islice
from traceback import walk_tb
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import torch
from mmcv.transforms import BaseTransform
from mmdet.datasets import BaseDetDataset
from mmengine.config import Config
from mmengine.dataset import BaseDataset, DefaultSampler, InfiniteSampler
from mmengine.hooks import CheckpointHook, ProfilerHook
from mmengine.logging import MMLogger
from mmengine.model import BaseModel
from mmengine.runner import BaseLoop, Runner
from mmengine.utils import ManagerMixin
from mmengine.visualization import Visualizer
from torch import nn
from torch.utils.data import DataLoader

from mmsmca.checkpoints.files import check_readable
from mmsmca.engine.quiet import quiet
from mmsmca.errors import ConfigError, Found, UserError

from .config import walk
from .describe import described, suggestion
from .read_keys import ReadKeys
from .sandbox import writing_inside
from .schedule import schedule_faults

# At most this many images of a training batch, and of each data set to evaluate.
NUM_IMAGES = 2
# What a function of the runner is about.
STAGES = {
    'setup_env': 'env_cfg', 'set_randomness': 'randomness', 'build_logger': 'log_level',
    'build_log_processor': 'log_processor', 'build_visualizer': 'visualizer',
    'build_model': 'model', 'register_default_hooks': 'default_hooks',
    'register_custom_hooks': 'custom_hooks', 'build_train_loop': 'train_dataloader or train_cfg',
    'build_val_loop': 'val_dataloader, val_cfg or val_evaluator',
    'build_test_loop': 'test_dataloader, test_cfg or test_evaluator',
    'build_optim_wrapper': 'optim_wrapper', 'build_param_scheduler': 'param_scheduler',
    'scale_lr': 'auto_scale_lr',
}  # fmt: skip


def trial_faults(cfg: Config, phase: str) -> Found[BaseModel | None]:
    """Run MMEngine's runner on a config for an iteration, and discard what it has learnt.

    The run is what the config says, except for this: A training batch has the first two images of
    the run's first batch, unless its sampler composes batches of unlike images. After one
    iteration, two images of every validation data set are evaluated. Data are loaded in this
    process, which is the only one. The model is neither compiled nor pretrained. Everything that
    is written lies in a temporary folder; nothing is logged, no checkpoint is saved, and no
    service is contacted. Random generators and MMEngine's global objects are left unchanged.

    Args:
        cfg: The config as it will run; not changed.
        phase: "train" or "test".

    Yields:
        Why the run fails; else keys that are misspelt, and schedules that do not fit its length.
        The run also fails if a hook needs a metric that the evaluator does not report, or a
        checkpoint could not be read back.

    Returns:
        The model; None if the run fails.
    """
    cfg = copy.deepcopy(cfg)
    cfg.setdefault('default_scope', 'mmdet')
    cfg.update(launcher='none', load_from=None, resume=False)
    cfg.pop('compile', None)
    for _, node in walk(cfg.model, 'model'):
        if isinstance(node, dict) and 'Pretrained' in str(node.get('init_cfg')):
            node['init_cfg'] = None
    keys = ReadKeys(cfg)
    failure: UserError | None = None
    with _nothing_left_behind() as folder:
        cfg.work_dir = folder
        runner: Any = None
        try:
            runner = _TrialRunner.from_cfg(cfg)
            getattr(runner, phase)()
        except UserError as error:
            failure = error
        except Exception as error:
            text = described(error, cfg)
            end = '' if text.endswith('?') else '. Correct the config.'
            failure = ConfigError(f'{_place(error)}: {text}{end}')
        finally:
            for hook in runner.hooks if runner else ():
                if isinstance(hook, ProfilerHook) and torch.autograd._profiler_enabled():
                    hook.profiler.__exit__(None, None, None)
    if failure:
        yield failure
        return None
    for place, meant in keys.misspelt():
        yield ConfigError(f'{place}: nothing reads it; did you mean {meant}?')
    if phase == 'train':
        loop, iters = runner.train_loop, runner.train_loop.max_iters
        if cfg.train_cfg.get('max_epochs'):  # Processes share the batches of an epoch.
            processes = int(os.environ.get('WORLD_SIZE', 1))
            iters = loop.max_epochs * math.ceil(len(loop.dataloader) / processes)
        yield from schedule_faults(cfg, iters)
    return runner.model


class _FewBatches(DataLoader):
    """A data loader that loads in this process.

    Attributes:
        only_first: Whether to stop after the first batch, which is reduced to :data:`NUM_IMAGES`
            images unless its sampler composes batches of unlike images.
    """

    only_first = False

    def __iter__(self) -> Any:
        batches: Any = self.batch_sampler
        dataset: Any = self.dataset
        shuffled = isinstance(batches.sampler, (DefaultSampler, InfiniteSampler))
        size = NUM_IMAGES if self.only_first and shuffled else None
        # A data set that loads itself in its own way may not have been reduced.
        stop = 1 if self.only_first or len(dataset) > 50 * NUM_IMAGES else None
        for indices in islice(batches, stop):
            yield self.collate_fn([dataset[i] for i in indices[:size]])


class _TrialRunner(Runner):
    """MMEngine's runner, for an iteration of training or a small test."""

    def save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        """Check that the checkpoint could be read back, in the place of writing it."""

        def check(checkpoint: dict, *args: Any, **kwargs: Any) -> None:
            check_readable(checkpoint)

        with patch('mmengine.runner.runner.save_checkpoint', check):
            super().save_checkpoint(*args, **kwargs)

    def _log_env(self, env_cfg: dict) -> None:
        pass

    def dump_config(self) -> None:
        pass

    def build_visualizer(self, visualizer: Any = None) -> Visualizer:
        visualizer = super().build_visualizer(visualizer)
        for name, backend in visualizer._vis_backends.items():
            visualizer._vis_backends[name] = MagicMock(spec=type(backend))
        return visualizer

    def register_hooks(self, *args: Any, **kwargs: Any) -> None:
        super().register_hooks(*args, **kwargs)
        for hook in self.hooks:
            if isinstance(hook, CheckpointHook):
                hook.interval = 1
            if hasattr(hook, 'show'):
                hook.show = False

    def build_train_loop(self, loop: Any) -> BaseLoop:
        loop = super().build_train_loop(loop)
        loop.dataloader.only_first = True
        loop.val_begin = loop.val_interval = 1
        loop.dynamic_milestones, loop.dynamic_intervals = [0], [1]
        return loop

    def build_val_loop(self, loop: Any) -> BaseLoop:
        with _few_images():
            return super().build_val_loop(loop)

    def build_test_loop(self, loop: Any) -> BaseLoop:
        with _few_images():
            return super().build_test_loop(loop)

    def call_hook(self, fn_name: str, **kwargs: Any) -> None:
        if fn_name == 'after_train_iter':
            self.train_loop.stop_training = True
        elif fn_name == 'after_val_epoch':
            self._check_waiting(kwargs['metrics'])
        super().call_hook(fn_name, **kwargs)

    def _check_waiting(self, metrics: dict[str, float]) -> None:
        """Check that the evaluator reports what hooks and schedulers wait for."""
        schedulers = self.param_schedulers or []
        if isinstance(schedulers, dict):
            schedulers = [one for listed in schedulers.values() for one in listed]
        for part in (*self.hooks, *schedulers):
            for key in ('save_best', 'key_indicators', 'monitor'):
                names = getattr(part, key, None) or []
                for name in [names] if isinstance(names, str) else names:
                    if metrics and name != 'auto' and name not in metrics:
                        raise ConfigError(
                            f'{type(part).__name__}.{key} is {name!r}, which the evaluator does '
                            f'not report{suggestion(name, metrics)}'
                        )


@contextmanager
def _few_images() -> Iterator[None]:
    """Reduce data sets that are built inside to their first images."""

    def reducing(full_init: Callable) -> Callable:
        def reduced(dataset: BaseDataset) -> None:
            if not dataset._fully_initialized:
                full_init(dataset)
                # MMEngine refuses a subset as large as the whole.
                if len(dataset) > NUM_IMAGES:
                    dataset.get_subset_(NUM_IMAGES)

        return reduced

    with ExitStack() as stack:
        for kind in (BaseDataset, BaseDetDataset):
            reduced = reducing(kind.full_init)
            stack.enter_context(patch.object(kind, 'full_init', reduced))
        yield


def _place(error: Exception) -> str:
    """What failed: a part of the config, a hook, and the innermost module or transform."""
    stage, place = 'the trial', ''
    names: dict[int, str] = {}
    for frame, _ in walk_tb(error.__traceback__):
        owner, function = frame.f_locals.get('self'), frame.f_code.co_name
        # A module that is being built may have no parts yet.
        if isinstance(owner, nn.Module) and '_modules' in vars(owner):
            # The detector comes before its parts.
            names = names or {id(part): name for name, part in owner.named_modules()}
            place = f' in model.{names[id(owner)]}' if names.get(id(owner)) else place
        elif isinstance(owner, BaseTransform):
            place = f' in the transform {type(owner).__name__}'
        if isinstance(owner, Runner) and function == 'call_hook' and 'hook' in frame.f_locals:
            stage = f'{type(frame.f_locals["hook"]).__name__}.{frame.f_locals["fn_name"]}'
        elif isinstance(owner, BaseLoop) and function != '__init__':
            kind = type(owner).__name__
            stage = 'the first validation' if 'Val' in kind else 'the first training step'
            stage = 'the test' if 'Test' in kind else stage
        stage = STAGES.get(function, stage)
    return f'{stage} fails{place}'


@contextmanager
def _nothing_left_behind() -> Iterator[str]:
    """Make a temporary folder for all files, and restore what is global afterwards, in silence."""
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        for manager in _subclasses(ManagerMixin):
            stack.enter_context(patch.object(manager, '_instance_dict', OrderedDict()))
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())
        stack.callback(torch.cuda.empty_cache)  # No effect without a GPU.
        stack.callback(_close_logs)
        stack.enter_context(quiet(logging.CRITICAL))
        stack.enter_context(torch.random.fork_rng(devices))
        stack.enter_context(warnings.catch_warnings())
        stack.enter_context(redirect_stdout(io.StringIO()))
        # Formatting a config takes seconds, and so does a collection for every data set.
        stack.enter_context(patch.object(gc, 'collect'))
        stack.enter_context(patch.object(Config, 'pretty_text', ''))
        stack.enter_context(patch('mmengine.runner.runner.DataLoader', _FewBatches))
        stack.enter_context(patch.object(tempfile, 'tempdir', folder))
        stack.enter_context(writing_inside(folder))
        warnings.simplefilter('ignore')
        yield folder


def _close_logs() -> None:
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            handler.close()


def _subclasses(cls: Any) -> Iterator[Any]:
    for subclass in cls.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
