"""Checks for config keys that nothing reads, with suggestions for misspelt ones.

MMEngine and MMDetection ignore some misspelt keys, and fail on others only after an epoch. The
valid keys of a class are the arguments of its constructor. Those of a dict without a type are the
names that the source code of its reader mentions.
"""

import ast
import difflib
import inspect
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from traceback import walk_tb
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import torch
from mmdet import registry as registries
from mmdet.datasets import BaseDetDataset
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmengine._strategy import BaseStrategy, DDPStrategy
from mmengine.config import Config
from mmengine.dist import init_dist
from mmengine.hooks import CheckpointHook, Hook
from mmengine.model import BaseModel, MMDistributedDataParallel
from mmengine.optim import (
    BaseOptimWrapper,
    DefaultOptimWrapperConstructor,
    OptimWrapper,
    _ParamScheduler,
)
from mmengine.registry import FUNCTIONS, STRATEGIES, Registry
from mmengine.runner import BaseLoop, LogProcessor, Runner
from mmengine.utils.dl_utils import set_multi_processing
from torch.distributed import init_process_group
from torch.utils.data import DataLoader

from mmsmca.errors import ConfigError, one_line, shorten

# Functions to which a constructor passes its other keyword arguments.
READERS: dict[type, Callable] = {CheckpointHook: Runner.save_checkpoint}
# Valid keys besides the constructor's arguments, by base class.
BESIDE: dict[type, set[str]] = {
    Hook: {'priority'},
    _ParamScheduler: {'convert_to_iter_based'},
    BaseOptimWrapper: {'optimizer', 'constructor', 'paramwise_cfg'},
    BaseLoop: {'by_epoch'},
}
LOADER = {
    'dataset', 'sampler', 'batch_sampler', 'collate_fn', 'worker_init_fn', 'num_batch_per_epoch',
}  # fmt: skip
# Registries of the classes that a config names outside its model.
SECTIONS = [
    registry
    for name, registry in vars(registries).items()
    if isinstance(registry, Registry) and name != 'MODELS'
] + [STRATEGIES, FUNCTIONS]
# Dicts without a type: functions that take their keys as arguments, and other valid keys.
SETTINGS: dict[str, tuple[Callable | str, ...]] = {
    'env_cfg': (BaseStrategy._setup_env,),
    'env_cfg.mp_cfg': (set_multi_processing,),
    'env_cfg.dist_cfg': (init_dist, init_process_group, 'port'),
    'randomness': (BaseStrategy._set_randomness,),
    'auto_scale_lr': ('enable', 'base_batch_size'),
    'compile': (torch.compile, 'target'),
}
# Arguments of these functions that do not come from the dict.
ELSEWHERE = {'self', 'launcher', 'randomness', 'distributed'}
# Default model wrappers of the strategies.
MODEL_WRAPPERS: dict[Callable, type] = {DDPStrategy: MMDistributedDataParallel}
# Top-level keys that only some runners read.
OF_SOME_RUNNERS = (
    'strategy', 'model_wrapper_cfg', 'sync_bn', 'find_unused_parameters',
    'activation_checkpointing', 'efficient_conv_bn_eval',
)  # fmt: skip
# Top-level keys that MMEngine and MMDetection read.
TOP_LEVEL = {
    *inspect.signature(Runner).parameters, *OF_SOME_RUNNERS,
    'auto_scale_lr', 'compile', 'custom_imports', 'runner_type', 'tta_model', 'tta_pipeline',
}  # fmt: skip
# Default hooks of every runner.
HOOKS = ('runtime_info', 'timer', 'sampler_seed', 'logger', 'param_scheduler', 'checkpoint')
# Keys below which types belong to no registry, or names are arbitrary.
FREE = {
    'metainfo', 'data_prefix', 'backend_args', 'file_client_args', 'clip_grad', 'init_kwargs',
    'paramwise_cfg', 'filter_cfg', 'define_metric_cfg', 'collate_fn', 'worker_init_fn',
}  # fmt: skip
# Integers that must be at least 1, unless they are the default of the class.
COUNTS = {
    'interval', 'val_interval', 'max_epochs', 'max_iters', 'window_size', 'accumulative_counts',
    'times', 'step_size', 'T_max', 'period', 'max_keep_ckpts', 'base_batch_size', 'batch_size',
}  # fmt: skip
WORDS = {int: 'an integer', float: 'a number', bool: 'true or false', str: 'text'}


def check_keys(cfg: Config, phases: Iterable[str], model: BaseModel) -> None:
    """Check that every key that a run uses is read, except the arguments of the model's classes.

    Args:
        cfg: The config as it will run.
        phases: Which of "train", "val" and "test" the run uses.
        model: The model built from ``cfg.model``; its constructors have checked their arguments.

    Raises:
        ConfigError: If nothing reads a key, a type is not registered, or a value has a type that
            its reader does not accept.
    """
    for name in cfg:
        # Other names are variables: `test_pipeline` is not a misspelt `tta_pipeline`.
        meant = difflib.get_close_matches(name, TOP_LEVEL, n=1, cutoff=0.885)
        if meant and name not in TOP_LEVEL:
            raise ConfigError(f'{name}: nothing reads it; did you mean {meant[0]}?')
    for phase in phases:
        loader = cfg.get(f'{phase}_dataloader')
        if loader is not None:
            names = LOADER | _names(DataLoader.__init__) - {'self'}
            _check_names(f'{phase}_dataloader', loader, names)
            # DataLoader's own type hints cannot be evaluated.
            _check_values(f'{phase}_dataloader', loader, dict(batch_size=int, num_workers=int))
            if loader.get('persistent_workers') and not loader.get('num_workers'):
                key = f'{phase}_dataloader.persistent_workers'
                raise ConfigError(
                    f'{key} is True, but {phase}_dataloader.num_workers is 0. Set {key}=False too.'
                )
            _check_types(loader, f'{phase}_dataloader')
        loop = cfg.get(f'{phase}_cfg') or {}
        by = '' if phase != 'train' else 'EpochBased' if loop.get('by_epoch', True) else 'IterBased'
        default = registries.LOOPS.get(f'{by}{phase.capitalize()}Loop')
        _check_types(loop, f'{phase}_cfg', default)
        _check_types(cfg.get(f'{phase}_evaluator'), f'{phase}_evaluator')
    for name, hook in (cfg.get('default_hooks') or {}).items():
        if isinstance(hook, dict) and 'type' not in hook:
            raise ConfigError(f'default_hooks.{name} has no type{suggestion(name, HOOKS)}')
    for key in ('default_hooks', 'custom_hooks', 'visualizer'):
        _check_types(cfg.get(key), key)
    _check_types(cfg.get('log_processor'), 'log_processor', LogProcessor)
    if 'train' in phases:
        _check_types(cfg.get('param_scheduler'), 'param_scheduler')
        if 'optimizer' in cfg.optim_wrapper:
            _check_optimizer(cfg.optim_wrapper, model)
    for key, readers in SETTINGS.items():
        _check_settings(cfg, key, readers)
    _check_runner(cfg)
    _check_model(cfg.model, model)


def suggestion(name: str, known: Iterable[str]) -> str:
    """End of a sentence about an unknown name: the closest known name, or some known names."""
    known = sorted(word for word in known if not word.startswith('_'))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.76)
    if close:
        return f'; did you mean {close[0]}?'
    # The first names of a long list are no help.
    return (
        f'. Choose one of {shorten(known, 12)}.'
        if 0 < len(known) < 100
        else '. Correct or remove it.'
    )


def signature_names(kind: Callable) -> set[str] | None:
    """Names of all arguments of a function, or of a class and its bases.

    Returns:
        The names; None if any name is accepted.
    """
    names: set[str] = set()
    readers = _readers(kind)
    for reader in readers:
        names |= _names(reader) - {'self'}
        parameters = inspect.signature(reader).parameters.values()
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names
    return None if readers else names


def _readers(kind: Callable) -> list[Callable]:
    """Functions that read the arguments of a class, its own first; or the function itself."""
    if not isinstance(kind, type):
        return [kind]
    return [
        reader
        for base in kind.__mro__[:-1]
        for reader in (vars(base).get('__init__'), READERS.get(base))
        if reader is not None
    ]


def described(error: Exception) -> str:
    """Describe an error raised while building; for an unknown key, suggest the closest name.

    Args:
        error: The error.

    Returns:
        One line.
    """
    text = one_line(error)
    unknown = re.search(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", text)
    if not unknown:
        return text
    known: set[str] = set()
    for frame, _ in walk_tb(error.__traceback__):
        bases = type(frame.f_locals.get('self')).__mro__
        for value in (*bases, *frame.f_locals.values(), frame.f_globals.get(unknown[1])):
            if isinstance(value, type) and value.__name__ == unknown[1]:
                known = signature_names(value) or set()
    close = difflib.get_close_matches(unknown[2], known, n=1)
    return text + (f' (did you mean {close[0]}?)' if close else '')


def _names(function: Callable) -> set[str]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}


def _check_settings(cfg: Config, key: str, readers: Iterable[Callable | str]) -> None:
    node: Any = cfg
    for name in key.split('.'):
        node = (node or {}).get(name)
    if not isinstance(node, dict):
        return
    known: set[str] = set()
    hints: dict[str, Any] = {}
    for reader in readers:
        known |= {reader} if isinstance(reader, str) else _names(reader)
        hints |= {} if isinstance(reader, str) else _hints(reader)
    _check_names(key, node, known - ELSEWHERE)
    _check_values(key, node, hints)


def _check_runner(cfg: Config) -> None:
    """Check the runner's type and strategy, the log level and the seed."""
    kind = cfg.get('runner_type', 'Runner')
    read = mentioned(_classes(kind, 'runner_type', [registries.RUNNERS]))
    for key in OF_SOME_RUNNERS:
        if cfg.get(key) and key not in read:
            remedy = "runner_type='FlexibleRunner'" if key == 'strategy' else 'its part of strategy'
            raise ConfigError(f'{key}: {kind} does not read it. Set {remedy}, or leave {key} out.')
    strategy = cfg.get('strategy')
    if strategy is not None:
        if 'type' not in strategy:
            raise ConfigError(f'strategy has no type{suggestion("type", STRATEGIES.module_dict)}')
        _check_types(strategy, 'strategy')
        found = _classes(strategy.type, 'strategy.type')
        wrapper = next((MODEL_WRAPPERS[cls] for cls in found if cls in MODEL_WRAPPERS), None)
        _check_types(strategy.get('model_wrapper'), 'strategy.model_wrapper', wrapper)
    _check_types(cfg.get('model_wrapper_cfg'), 'model_wrapper_cfg', MMDistributedDataParallel)
    level = cfg.get('log_level', 'INFO')
    number = logging.getLevelName(level) if isinstance(level, str) else level
    if not isinstance(number, int):
        levels = {logging.getLevelName(number) for number in range(10, 60, 10)}
        raise ConfigError(f'log_level is {level!r}{suggestion(str(level), levels)}')
    seed = (cfg.get('randomness') or {}).get('seed')
    if seed is not None and not (isinstance(seed, int) and 0 <= seed < 2**32):
        raise ConfigError(
            f'randomness.seed is {seed!r}, but must be an integer from 0 to {2**32 - 1}.'
        )


def _check_names(key: str, node: dict, known: Iterable[str]) -> None:
    for name in node:
        if name not in known:
            raise ConfigError(f'{key}.{name}: nothing reads {name}{suggestion(name, known)}')


def _check_types(node: Any, key: str, default: type | None = None) -> None:
    """Check every dict with a type at or below a node, whose own type defaults to ``default``."""
    if isinstance(node, (list, tuple)):
        for i, below in enumerate(node):
            _check_types(below, f'{key}.{i}')
    elif isinstance(node, dict):
        found: list[Callable] = [default] if default else []
        if 'type' in node and key.split('.')[-1] not in FREE:
            found = _classes(node['type'], f'{key}.type')
        accepted = [signature_names(cls) for cls in found]
        if accepted and None not in accepted:
            bases = {base for cls in found for base in getattr(cls, '__mro__', ())}
            beside = {'type', '_scope_'}.union(*(BESIDE.get(base, ()) for base in bases))
            _check_names(key, node, beside.union(*filter(None, accepted)))
        for cls in found[:1]:
            _check_values(key, node, _hints(cls))
        if found and isinstance(found[0], type) and issubclass(found[0], BaseDetDataset):
            _check_names(f'{key}.filter_cfg', node.get('filter_cfg') or {}, mentioned(found))
        for name, below in node.items():
            # The types below Albu are Albumentations' own.
            if name not in FREE and node.get('type') != 'Albu':
                _check_types(below, f'{key}.{name}')


def _classes(kind: Any, key: str, among: Iterable[Registry] = SECTIONS) -> list[Callable]:
    """Classes and functions that a type may refer to in the given registries."""
    if not isinstance(kind, str):
        return [kind] if callable(kind) else []
    found = {registry.get(kind) for registry in among} - {None}
    if not found:
        every = {one for registry in among for one in (registry, registry.parent) if one}
        known = set().union(*(registry.module_dict for registry in every))
        raise ConfigError(f'{key}: nothing is called {kind}{suggestion(kind, known)}')
    return list(found)


@cache
def _hints(kind: Callable) -> dict[str, Any]:
    """Types of arguments by name, and their default values by name followed by " default"."""
    hints: dict[str, Any] = {}
    for reader in reversed(_readers(kind)):
        try:
            hints |= get_type_hints(reader)
        except Exception:  # names that are imported for type checking only
            continue
        for name, parameter in inspect.signature(reader).parameters.items():
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
        least = 1 if name in COUNTS else 0 if name == 'num_workers' else None
        if least is not None and isinstance(value, (int, float)):
            if value != hints.get(f'{name} default') and (value < least or value % 1):
                raise ConfigError(
                    f'{key}.{name} is {value!r}, but must be an integer of at least {least}.'
                )


def _kinds(hint: Any) -> set[type]:
    """Types that a value may have, if the hint consists of plain types; else none."""
    options = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = {option for option in options if option in (int, float, bool, str, NoneType)}
    if len(kinds) < len(options) or kinds <= {NoneType}:
        return set()
    # Integers are accepted as floats and as booleans.
    return kinds | ({int} if kinds & {float, bool} else set())


def _check_optimizer(wrapper: dict, model: BaseModel) -> None:
    key = 'optim_wrapper'
    _check_types(wrapper, key, OptimWrapper)
    clip = wrapper.get('clip_grad')
    if isinstance(clip, dict):
        by = clip.get('type', 'norm')
        if by not in ('norm', 'value'):
            raise ConfigError(f"{key}.clip_grad.type is {by!r}, but must be 'norm' or 'value'.")
        known = _names(getattr(torch.nn.utils, f'clip_grad_{by}_')) - {'parameters'} | {'type'}
        _check_names(f'{key}.clip_grad', clip, known)
        for name in ('max_norm', 'clip_value'):
            value = clip.get(name, 1)
            if not (isinstance(value, (int, float)) and value > 0):
                raise ConfigError(
                    f'{key}.clip_grad.{name} is {clip[name]!r}, but must be positive.'
                )
    paramwise = wrapper.get('paramwise_cfg') or {}
    name = wrapper.get('constructor') or 'DefaultOptimWrapperConstructor'
    among = [registries.OPTIM_WRAPPER_CONSTRUCTORS]
    constructor: Any = _classes(name, f'{key}.constructor', among)[0]
    if not issubclass(constructor, DefaultOptimWrapperConstructor):
        return
    _check_names(f'{key}.paramwise_cfg', paramwise, mentioned([constructor]))
    names = [name for name, _ in model.named_parameters()]
    for part, settings in (paramwise.get('custom_keys') or {}).items():
        place = f'{key}.paramwise_cfg.custom_keys.{part}'
        parts = {piece for name in names for piece in name.split('.') if not piece.isdigit()}
        # Configs inherit custom_keys for parameters that their model does not have.
        misspelt = difflib.get_close_matches(part, parts, n=1, cutoff=0.8)
        if misspelt and not any(part in name for name in names):
            raise ConfigError(f'{place}: no parameter has this name{suggestion(part, parts)}')
        _check_names(place, settings, {'lr_mult', 'decay_mult'})


def _check_model(node: dict, model: BaseModel) -> None:
    """Check the dicts without a type in a model's config, such as ``test_cfg``."""
    known = mentioned({type(module) for module in model.modules()})
    is_detr = isinstance(model, DetectionTransformer)
    for place, below in walk(node, 'model'):
        if not isinstance(below, dict) or 'type' in below or '.init_cfg' in place:
            continue
        for name in below:
            # Models other than DETRs pass settings to functions whose source is not searched.
            unread = name not in known
            if unread and (is_detr or difflib.get_close_matches(name, known, n=1, cutoff=0.8)):
                raise ConfigError(f'{place}.{name}: nothing reads {name}{suggestion(name, known)}')


def walk(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield a config node and all nodes below it, each with its key."""
    yield key, node
    if isinstance(node, dict):
        for name, below in node.items():
            yield from walk(below, f'{key}.{name}')
    elif isinstance(node, (list, tuple)):
        for i, below in enumerate(node):
            yield from walk(below, f'{key}.{i}')


def mentioned(kinds: Iterable[Callable]) -> set[str]:
    """Names that the modules of classes and their bases mention, so may read from a dict."""
    modules = {base.__module__ for kind in kinds for base in getattr(kind, '__mro__', (kind,))}
    wanted = [name for name in modules if not name.startswith(('torch', 'builtins', 'typing'))]
    return set().union(*map(_words, wanted))


@cache
def _words(module: str) -> set[str]:
    try:
        tree = ast.parse(inspect.getsource(sys.modules[module]))
    except (OSError, TypeError, KeyError):  # no source, as for classes defined in a console
        return set()
    words = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words.add(node.value)
        elif isinstance(node, ast.arg):
            words.add(node.arg)
        elif isinstance(node, ast.Attribute):
            words.add(node.attr)
    return {word for word in words if word.isidentifier()}
