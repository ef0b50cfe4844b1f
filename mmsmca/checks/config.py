"""Loading configs, merging options into them, and walking through them."""

import difflib
import inspect
from argparse import Namespace
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config
from mmengine.runner import Runner

from mmsmca.config_scope import config_path
from mmsmca.errors import ConfigError, one_line, shorten

# Top-level keys that MMEngine and MMDetection read.
TOP_LEVEL = {
    *inspect.signature(Runner).parameters,
    'activation_checkpointing', 'auto_scale_lr', 'compile', 'custom_imports',
    'efficient_conv_bn_eval', 'find_unused_parameters', 'model_wrapper_cfg', 'runner_type',
    'strategy', 'sync_bn', 'tta_model', 'tta_pipeline',
}  # fmt: skip


def load_config(args: Namespace) -> Config:
    """Load a config and merge ``--cfg-options``.

    Args:
        args: Has ``config``, a file or one of a package (``mmdet::...``), and ``cfg_options``, a
            dict or None, and for a config whose model starts from a checkpoint also
            ``checkpoint``.

    Returns:
        The config; ``load_from`` is the checkpoint, if ``args`` has one.

    Raises:
        ConfigError: If the config file does not exist, or it or an option is wrong.
    """
    path = config_path(args.config)
    try:
        cfg = Config.fromfile(path)
    except Exception as error:  # a config is Python code
        raise ConfigError(
            f'config {args.config} cannot be read ({one_line(error)}). Correct the file, or the '
            'one that it inherits from.'
        ) from error
    merge_options(cfg, args.cfg_options or {})
    # By default, MMEngine would look up MMDetection's classes in its own registries.
    cfg.setdefault('default_scope', 'mmdet')
    if 'checkpoint' in args:
        cfg.load_from, cfg.resume = args.checkpoint, False
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
            remedy = (
                f'Set the keys with its value: {shorten(places, 8)}.' if places else 'Leave it out.'
            )
            raise ConfigError(
                f'{where} {option}: {name} is a variable of the config, which nothing reads once '
                f'the config is loaded. {remedy}'
            )
        try:
            cfg.merge_from_dict({option: options[option]})
        except Exception as error:
            raise ConfigError(
                f'{where} {option}={options[option]!r} cannot be merged ({one_line(error)}). '
                'Correct the key; `mim run mmdet print_config CONFIG` lists all keys.'
            ) from error


def walk(node: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Yield a config node and all nodes below it, each with its key."""
    yield key, node
    if isinstance(node, dict):
        for name, below in node.items():
            yield from walk(below, f'{key}.{name}')
    elif isinstance(node, (list, tuple)):
        for i, below in enumerate(node):
            yield from walk(below, f'{key}.{i}')


def walk_all(cfg: Config) -> Iterator[tuple[str, Any]]:
    """Yield all nodes below the top-level keys that a runner reads, each with its key."""
    for name in cfg:
        if name in TOP_LEVEL:
            yield from walk(cfg[name], name)


def _places(cfg: Config, value: Any, name: str) -> list[str]:
    """Keys whose value equals a variable's (or contains it, if text); those of its name first."""

    def has(node: Any) -> bool:
        text = isinstance(value, str) and isinstance(node, str) and bool(value)
        return value in node if text else type(node) is type(value) and node == value

    places = [place for place, node in walk_all(cfg) if has(node)]
    named = [place for place in places if place.split('.')[-1] == name]
    # If a key has the variable's name, equal values in the model are a coincidence.
    others = [p for p in places if p not in named and not (named and p.startswith('model.'))]
    return named + others
