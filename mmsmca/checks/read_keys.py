"""Which keys of a config a run reads."""

import copy
import difflib
from collections.abc import Callable, Iterator
from typing import Any

from mmengine.config import Config, ConfigDict

from .config import walk_all


class ReadKeys:
    """A record of the names that a config's dicts, or copies of them, are asked for.

    Passing a dict on as a whole does not count: who takes its keys as arguments refuses others.

    Args:
        cfg: The config; from now on its dicts are recorded.
    """

    def __init__(self, cfg: Config) -> None:
        object.__setattr__(cfg, '_cfg_dict', _recorded(cfg._cfg_dict))
        self._nodes: list[tuple[str, _Recorded, list[str]]] = [
            (place, node, list(dict.keys(node)))
            for place, node in walk_all(cfg)
            # A class takes its keys as arguments, and the names of custom keys are the user's.
            if isinstance(node, _Recorded)
            and 'type' not in dict.keys(node)
            and not place.endswith('.custom_keys')
        ]

    def misspelt(self) -> Iterator[tuple[str, str]]:
        """Yield each key that nothing asked for, with a name like it that was asked for."""
        for place, node, names in self._nodes:
            for name in names:
                if name not in node.asked:
                    for meant in difflib.get_close_matches(name, node.asked, 1, 0.85):
                        yield f'{place}.{name}', meant


class _Recorded(ConfigDict):
    """A dict of a config that shares the names it was asked for with its copies."""

    asked: set[str]

    # With an iteration of its own, `**node` and `dict(node)` would get every key singly.
    __iter__ = dict.__iter__

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        object.__setattr__(self, 'asked', set())
        super().__init__(*args, **kwargs)

    def __copy__(self) -> '_Recorded':
        return _filled(dict(dict.items(self)), self.asked)

    copy = __copy__

    def __deepcopy__(self, memo: dict) -> '_Recorded':
        return _filled(copy.deepcopy(dict(dict.items(self)), memo), self.asked)


def _filled(content: dict, asked: set[str]) -> _Recorded:
    node = _Recorded()
    dict.update(node, content)
    object.__setattr__(node, 'asked', asked)
    return node


def _noting(method: Callable) -> Callable:
    def noting(node: _Recorded, name: str, *args: Any) -> Any:
        node.asked.add(name)
        return method(node, name, *args)

    return noting


for _name in ('__getitem__', '__getattr__', '__contains__', 'get', 'pop', 'setdefault'):
    setattr(_Recorded, _name, _noting(getattr(ConfigDict, _name)))


def _recorded(node: Any) -> Any:
    if isinstance(node, ConfigDict):
        return _filled({name: _recorded(below) for name, below in dict.items(node)}, set())
    if isinstance(node, (list, tuple)):
        return type(node)(map(_recorded, node))
    return node
