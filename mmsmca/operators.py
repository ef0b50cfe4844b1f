"""MMDetection without mmcv's compiled operators: a stand-in for ``mmcv._ext``."""

import importlib.machinery
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import NoReturn

NAME = 'mmcv._ext'


class _NoOperators(types.ModuleType):
    """A module whose every attribute is an operator that says what it lacks."""

    def __getattr__(self, name: str) -> Callable[..., NoReturn]:
        if name.startswith('__'):
            raise AttributeError(name)

        def missing(*args: object, **kwargs: object) -> NoReturn:
            raise ImportError(
                f'mmcv was installed without its compiled operator {name}: '
                '`make install STACK=onedl` compiles them'
            )

        return missing


def provide_operators() -> None:
    """Put the stand-in in place where mmcv has no compiled operators; else change nothing."""
    if NAME in sys.modules or importlib.util.find_spec(NAME) is not None:
        return
    module = _NoOperators(NAME)
    module.__spec__ = importlib.machinery.ModuleSpec(NAME, loader=None)
    sys.modules[NAME] = module
