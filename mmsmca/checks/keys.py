"""What a trial cannot say about a config: keys it does not read, and values that pass unnoticed."""

import difflib
from collections.abc import Callable, Iterator
from inspect import signature

import torch
from mmengine.config import Config
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.registry import OPTIMIZERS
from torch.nn.parallel import DistributedDataParallel

from mmsmca.errors import ConfigError, Fault

from .config import TOP_LEVEL, walk_all
from .describe import class_of, suggestion

# Dicts that the trial leaves out, with the functions that take their keys, and other valid keys.
UNTRIED: dict[str, tuple[Callable | str, ...]] = {
    'auto_scale_lr': ('enable', 'base_batch_size'),
    'compile': (torch.compile, 'target'),
    'model_wrapper_cfg': (MMDistributedDataParallel, DistributedDataParallel, 'type'),
}

# Integers that must be at least 1; of the last two, -1 stands for never and all.
COUNTS = {
    'val_interval', 'max_epochs', 'max_iters', 'window_size', 'accumulative_counts', 'times',
    'step_size', 'T_max', 'period', 'base_batch_size', 'batch_size', 'interval', 'max_keep_ckpts',
}  # fmt: skip


def key_faults(cfg: Config) -> Iterator[Fault]:
    """Check what needs neither model nor data.

    Args:
        cfg: The config as it will run.

    Yields:
        Keys that nothing reads, values of a type that their reader does not accept, and a config
        that does not import this package.
    """
    for name in cfg:
        # Other names are variables: `test_pipeline` is not a misspelt `tta_pipeline`.
        meant = difflib.get_close_matches(name, TOP_LEVEL, n=1, cutoff=0.885)
        if meant and name not in TOP_LEVEL:
            yield ConfigError(f'{name}: nothing reads it; did you mean {meant[0]}?')
    if cfg.get('strategy'):
        yield ConfigError(
            "strategy: MMEngine's Runner does not read it. Leave it out, or set "
            "runner_type='FlexibleRunner'."
        )
    for key, takers in UNTRIED.items():
        node = cfg.get(key)
        if isinstance(node, dict):
            known = {taker for taker in takers if isinstance(taker, str)}
            for taker in takers:
                known |= set() if isinstance(taker, str) else set(signature(taker).parameters)
            for name in node.keys() - known:
                yield ConfigError(f'{key}.{name}: nothing reads it{suggestion(name, known)}')
    yield from _import_faults(cfg)
    optimizer = (cfg.get('optim_wrapper') or {}).get('optimizer') or {}
    # MMEngine's message would not name it.
    if isinstance(optimizer.get('type'), str) and class_of(optimizer) is object:
        yield ConfigError(
            f'optim_wrapper.optimizer.type: nothing is called {optimizer["type"]}'
            f'{suggestion(optimizer["type"], OPTIMIZERS.module_dict)}'
        )
    for key, node in walk_all(cfg):
        if isinstance(node, dict) and not f'{key}.'.startswith(('model.', 'visualizer.')):
            for name, value in node.items():
                yield from _value_faults(f'{key}.{name}', name, value)


def custom_key_faults(cfg: Config, model: BaseModel) -> Iterator[Fault]:
    """Check that the parts of a model with settings of their own exist.

    Configs inherit settings for parts that their model does not have, so only names that are
    almost those of a part are refused.

    Args:
        cfg: The config as it will run.
        model: The model.

    Yields:
        Names in ``optim_wrapper.paramwise_cfg.custom_keys`` that are misspelt.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    names = [name for name, _ in model.named_parameters()]
    parts = {part for name in names for part in name.split('.') if not part.isdigit()}
    for part in (wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}:
        misspelt = difflib.get_close_matches(part, parts, n=1, cutoff=0.8)
        if misspelt and not any(part in name for name in names):
            yield ConfigError(
                f'optim_wrapper.paramwise_cfg.custom_keys.{part}: no parameter has this '
                f'name{suggestion(part, parts)}'
            )


def _import_faults(cfg: Config) -> Iterator[Fault]:
    """Own ``custom_imports`` replace those of a base config."""
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    modules = [imports] if isinstance(imports, str) else imports
    if any(module.split('.')[0] == 'mmsmca' for module in modules):
        return
    for key, node in walk_all(cfg):
        if isinstance(node, dict) and isinstance(node.get('type'), str):
            if class_of(node).__module__.startswith('mmsmca.'):
                yield ConfigError(
                    f"custom_imports.imports lacks 'mmsmca', which {key}.type {node['type']} is "
                    'from: MMDetection could load neither this config nor checkpoints of its '
                    f'training. Set custom_imports=dict(imports={["mmsmca", *modules]}).'
                )
                return


def _value_faults(key: str, name: str, value: object) -> Iterator[Fault]:
    if isinstance(value, str) and value.lower() in ('true', 'false'):
        yield ConfigError(
            f'{key} is {value!r}, a text, which counts as true. Set it to True or False.'
        )
    if not isinstance(value, (str, int, float)):
        return
    number = value if isinstance(value, (int, float)) else 0
    if name in COUNTS and (number < 1 or number % 1):
        if not (number == -1 and name in ('interval', 'max_keep_ckpts')):
            yield ConfigError(f'{key} is {value!r}, but must be an integer from 1.')
    if name in ('max_norm', 'clip_value') and not number > 0:
        yield ConfigError(f'{key} is {value!r}, but must be positive.')
