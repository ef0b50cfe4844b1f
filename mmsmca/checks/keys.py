"""What a trial cannot say about a config: keys it does not read, and values that pass unnoticed."""

import difflib
from collections.abc import Callable
from functools import cache
from inspect import signature
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from mmdet import registry as registries
from mmengine.config import Config
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper
from mmengine.runner import LogProcessor, Runner
from torch.nn.parallel import DistributedDataParallel

from mmsmca.errors import ConfigError

from .config import TOP_LEVEL, walk_all
from .describe import classes, readers, suggestion

# Dicts that the trial leaves out, with the functions that take their keys, and other valid keys.
UNTRIED: dict[str, tuple[Callable | str, ...]] = {
    'auto_scale_lr': ('enable', 'base_batch_size'),
    'compile': (torch.compile, 'target'),
    'model_wrapper_cfg': (MMDistributedDataParallel, DistributedDataParallel, 'type'),
}


def _loader(
    batch_size: int, num_workers: int, persistent_workers: bool, drop_last: bool, pin_memory: bool
) -> None:
    """Types of a data loader's arguments, as PyTorch's own cannot be evaluated."""


# Readers of dicts without a type.
DEFAULT_TYPES = {
    'log_processor': LogProcessor,
    'optim_wrapper': OptimWrapper,
    'randomness': Runner.set_randomness,
    **{f'{phase}_dataloader': _loader for phase in ('train', 'val', 'test')},
}
# Integers that must be at least 1, unless they are the default of the class.
COUNTS = {
    'interval', 'val_interval', 'max_epochs', 'max_iters', 'window_size', 'accumulative_counts',
    'times', 'step_size', 'T_max', 'period', 'max_keep_ckpts', 'base_batch_size',
}  # fmt: skip
WORDS = {int: 'an integer', float: 'a number', bool: 'true or false', str: 'text'}


def check_keys(cfg: Config) -> None:
    """Check what needs neither model nor data.

    Args:
        cfg: The config as it will run.

    Raises:
        ConfigError: If nothing reads a key, a value has a type that its reader does not accept, or
            the config does not import this package.
    """
    for name in cfg:
        # Other names are variables: `test_pipeline` is not a misspelt `tta_pipeline`.
        meant = difflib.get_close_matches(name, TOP_LEVEL, n=1, cutoff=0.885)
        if meant and name not in TOP_LEVEL:
            raise ConfigError(f'{name}: nothing reads it; did you mean {meant[0]}?')
    if cfg.get('strategy'):
        raise ConfigError(
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
                raise ConfigError(f'{key}.{name}: nothing reads it{suggestion(name, known)}')
    _check_imports(cfg)
    for key, node in walk_all(cfg):
        if isinstance(node, dict) and not key.startswith('model.'):
            for kind in classes(_reader(key, node)):
                _check_values(key, node, _hints(kind))
    for name in ('max_norm', 'clip_value'):
        value = ((cfg.get('optim_wrapper') or {}).get('clip_grad') or {}).get(name, 1)
        if not (isinstance(value, (int, float)) and value > 0):
            raise ConfigError(f'optim_wrapper.clip_grad.{name} is {value!r}, but must be positive.')


def check_custom_keys(cfg: Config, model: BaseModel) -> None:
    """Check that the parts of a model with settings of their own exist.

    Configs inherit settings for parts that their model does not have, so only names that are
    almost those of a part are refused.

    Args:
        cfg: The config as it will run.
        model: The model.

    Raises:
        ConfigError: If a name in ``optim_wrapper.paramwise_cfg.custom_keys`` is misspelt.
    """
    wrapper = cfg.get('optim_wrapper') or {}
    constructor = registries.OPTIM_WRAPPER_CONSTRUCTORS.get(
        wrapper.get('constructor') or 'DefaultOptimWrapperConstructor'
    )
    if not (
        isinstance(constructor, type) and issubclass(constructor, DefaultOptimWrapperConstructor)
    ):
        return
    names = [name for name, _ in model.named_parameters()]
    parts = {part for name in names for part in name.split('.') if not part.isdigit()}
    for part in (wrapper.get('paramwise_cfg') or {}).get('custom_keys') or {}:
        misspelt = difflib.get_close_matches(part, parts, n=1, cutoff=0.8)
        if misspelt and not any(part in name for name in names):
            raise ConfigError(
                f'optim_wrapper.paramwise_cfg.custom_keys.{part}: no parameter has this '
                f'name{suggestion(part, parts)}'
            )


def _check_imports(cfg: Config) -> None:
    """Own ``custom_imports`` replace those of a base config."""
    imports = (cfg.get('custom_imports') or {}).get('imports') or []
    modules = [imports] if isinstance(imports, str) else imports
    if any(module.split('.')[0] == 'mmsmca' for module in modules):
        return
    for key, node in walk_all(cfg):
        if isinstance(node, dict) and isinstance(node.get('type'), str):
            for kind in classes(_reader(key, node)):
                if kind.__module__.startswith('mmsmca.'):
                    raise ConfigError(
                        f"custom_imports.imports lacks 'mmsmca', which {key}.type "
                        f'{node["type"]} is from: MMDetection could load neither this config nor '
                        'checkpoints of its training. Set custom_imports='
                        f'dict(imports={["mmsmca", *modules]}).'
                    )


def _reader(key: str, node: dict) -> Any:
    if key == 'train_cfg' and 'type' not in node:
        return f'{"EpochBased" if node.get("by_epoch", True) else "IterBased"}TrainLoop'
    return node.get('type', DEFAULT_TYPES.get(key))


@cache
def _hints(kind: Callable) -> dict[str, Any]:
    """Types of arguments by name, and their default values by name followed by " default"."""
    hints: dict[str, Any] = {}
    for reader in reversed(readers(kind)):
        try:
            hints |= get_type_hints(reader)
        except Exception:  # names that are imported for type checking only
            continue
        for name, parameter in signature(reader).parameters.items():
            hints[f'{name} default'] = parameter.default
    return hints


def _check_values(key: str, node: dict, hints: dict[str, Any]) -> None:
    for name, value in node.items():
        allowed = _kinds(hints.get(name))
        # Epochs may be fractions where MMEngine converts them to iterations.
        if int in allowed and node.get('convert_to_iter_based'):
            allowed = allowed | {float}
        wrong = allowed and value is not None and not isinstance(value, tuple(allowed))
        if wrong and isinstance(value, (str, int, float)):
            shown = ' or '.join(word for kind, word in WORDS.items() if kind in allowed)
            raise ConfigError(f'{key}.{name} is {value!r}, but must be {shown}.')
        if name in COUNTS and isinstance(value, (int, float)):
            if value != hints.get(f'{name} default') and (value < 1 or value % 1):
                raise ConfigError(f'{key}.{name} is {value!r}, but must be an integer from 1.')


def _kinds(hint: Any) -> set[type]:
    """Types that a value may have, if the hint consists of plain types; else none."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = {option for option in options if option in (int, float, bool, str, NoneType)}
    if len(kinds) < len(options) or kinds <= {NoneType}:
        return set()
    # Integers are accepted as floats and as booleans.
    return kinds | ({int} if kinds & {float, bool} else set())
