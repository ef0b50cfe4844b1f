"""Which keys of a config a run reads."""

import copy
import difflib
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from mmengine.config import Config, ConfigDict

PLACE = '_place'


class ReadKeys:
    """A record of the names that a config's dicts, or copies of them, are asked for.

    Passing a dict on as a whole does not count: who takes its keys as arguments refuses others.

    Args:
        cfg: The config, recorded while :meth:`recording` is active.
    """

    def __init__(self, cfg: Config) -> None:
        self._nodes: dict[str, ConfigDict] = {}
        self._asked: dict[str, set[str]] = defaultdict(set)
        for name, node in cfg.items():
            self._follow(name, node)
        self._keys = {place: list(dict.keys(node)) for place, node in self._nodes.items()}

    def misspelt(self) -> Iterator[tuple[str, str]]:
        """Yield each key that nothing asked for, with a name like it that was asked for."""
        for place, names in self._keys.items():
            # A class takes its keys as arguments, and the names of custom keys are the user's.
            if 'type' in names or place.endswith('.custom_keys'):
                continue
            for name in names:
                if name not in self._asked[place]:
                    for meant in difflib.get_close_matches(name, self._asked[place], 1, 0.85):
                        yield f'{place}.{name}', meant

    @contextmanager
    def recording(self) -> Iterator[None]:
        """Record which keys are read."""

        def of_a_key(method: Callable) -> Callable:
            def recorded(node: ConfigDict, name: str, *args: Any) -> Any:
                self._note(node, name)
                return method(node, name, *args)

            return recorded

        def duplicate(node: ConfigDict) -> ConfigDict:
            other = ConfigDict()
            for name, value in dict.items(node):
                dict.__setitem__(other, name, value)
            return _placed(other, node)

        def deep_copy(node: ConfigDict, memo: dict) -> ConfigDict:
            other = memo[id(node)] = ConfigDict()
            for name, value in dict.items(node):
                dict.__setitem__(other, name, copy.deepcopy(value, memo))
            return _placed(other, node)

        copies = dict(copy=duplicate, __copy__=duplicate, __deepcopy__=deep_copy)
        with ExitStack() as stack:
            for name in ('__getitem__', '__getattr__', '__contains__', 'get', 'pop', 'setdefault'):
                recorded = of_a_key(getattr(ConfigDict, name))
                stack.enter_context(patch.object(ConfigDict, name, recorded))
            # With an iteration of its own, `**node` and `dict(node)` would get every key singly.
            stack.enter_context(patch.object(ConfigDict, '__iter__', dict.__iter__))
            for name, copied in copies.items():
                stack.enter_context(patch.object(ConfigDict, name, copied))
            yield

    def _follow(self, place: str, node: Any) -> None:
        if isinstance(node, ConfigDict):
            self._nodes[place] = node
            node.__dict__[PLACE] = place
            for name, below in node.items():
                dict.__setitem__(node, name, below)
                self._follow(f'{place}.{name}', below)
        elif isinstance(node, (list, tuple)):
            for i, below in enumerate(node):
                self._follow(f'{place}.{i}', below)

    def _note(self, node: ConfigDict, name: str) -> None:
        place = node.__dict__.get(PLACE)
        if place is not None:
            self._asked[place].add(name)


def _placed(other: ConfigDict, node: ConfigDict) -> ConfigDict:
    if PLACE in node.__dict__:
        other.__dict__[PLACE] = node.__dict__[PLACE]
    return other
