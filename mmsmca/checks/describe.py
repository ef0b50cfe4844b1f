"""Errors of MMEngine and MMDetection in one line, with the config key and the name meant."""

import difflib
import gc
import re
from collections.abc import Callable, Iterable
from inspect import signature
from types import FunctionType
from typing import Any

from mmdet import registry as registries
from mmengine.config import Config
from mmengine.registry import Registry

from mmsmca.errors import one_line, shorten

from .config import walk_all

REGISTRIES = [one for one in vars(registries).values() if isinstance(one, Registry)]
UNKNOWN_KEY = re.compile(r"([\w.]+)\(\) got an unexpected keyword argument '(\w+)'")
UNKNOWN_TYPE = re.compile(r'(\w+) is not in the (?:\w+::)?([\w ]+) registry')
NUMBER = re.compile(r'[-+]?\d*\.?\d+(e[-+]?\d+)?')


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


def described(error: Exception, cfg: Config | None = None) -> str:
    """Describe an error raised while building or running.

    Args:
        error: The error.
        cfg: The config to name places in. Defaults to None: none are named.

    Returns:
        One line. If the error is about an unknown key or type, it begins with its place in the
        config and ends with the closest known name.
    """
    # MMEngine adds the hook in which an error occurred, with its address.
    text = re.sub(r' in <\S+ object at 0x\w+>', '', one_line(error))
    nodes = dict(walk_all(cfg)) if cfg else {}
    if match := UNKNOWN_KEY.search(text):
        function, name = match.groups()
        holders = {k: n for k, n in nodes.items() if isinstance(n, dict) and name in n}
        own = [k for k, n in holders.items() if str(n.get('type')) == function.split('.')[0]]
        places = [f'{key}.{name}' for key in own or (holders if len(holders) == 1 else ())]
        functions: list[Callable] = [
            value
            for value in gc.get_objects()
            if isinstance(value, FunctionType) and value.__qualname__ == function
        ]
        # A constructor may pass the key on to a function with other arguments.
        for node in holders.values():
            functions += _readers(class_of(node))
        known = {argument for reader in functions for argument in signature(reader).parameters}
        known -= {name, 'self', 'args', 'kwargs'}
    elif match := UNKNOWN_TYPE.search(text):
        name = match[1]
        places = [key for key, node in nodes.items() if node == name]
        of_kind = [one for one in REGISTRIES if one.name == match[2]]
        known = set().union(*map(_registered, of_kind or REGISTRIES))
        text = f'nothing is called {name}'
    else:
        quoted = [k for k, n in nodes.items() if isinstance(n, str) and NUMBER.fullmatch(n)]
        if quoted and isinstance(error, TypeError):
            text = f'{shorten(quoted)}: {text}; without quotes it is a number'
        return text
    close = difflib.get_close_matches(name, sorted(known), n=1)
    where = f'{shorten(places)}: ' if places else ''
    return where + text + (f'; did you mean {close[0]}?' if close else '')


def class_of(node: Any) -> Any:
    """Class that a config's node refers to; ``object`` if none, as some types belong elsewhere."""
    kind = node.get('type') if isinstance(node, dict) else None
    if not isinstance(kind, str):
        return kind if callable(kind) else object
    name = kind.split('.')[-1]
    return next((one[name] for one in map(_registered, REGISTRIES) if name in one), object)


def _readers(kind: Any) -> list[Callable]:
    """Functions that read the arguments of a class; or the function itself."""
    if not isinstance(kind, type):
        return [kind]
    return [vars(base)['__init__'] for base in kind.__mro__[:-1] if '__init__' in vars(base)]


def _registered(registry: Registry) -> dict[str, Any]:
    """Classes by name in a registry and its parents."""
    registry.import_from_location()
    inherited = _registered(registry.parent) if registry.parent else {}
    return inherited | registry.module_dict
