"""Errors that only the user can fix, and how all tools report them."""

import sys
from collections.abc import Callable, Sequence
from functools import wraps
from itertools import zip_longest
from pathlib import Path
from typing import ParamSpec

P = ParamSpec('P')


class UserError(ValueError):
    """Base class. The message is one line that names the key or the file, and the remedy."""


class ConfigError(UserError):
    """A config, or a checkpoint it names, that cannot work. The message names key and remedy."""


class DataError(UserError):
    """Annotations or images that cannot be used. The message names file and remedy."""


class DivergedError(UserError):
    """A training whose predictions are not finite. The message says when, and the remedy."""


def command(main: Callable[P, int | None]) -> Callable[P, int]:
    """Let a tool's ``main`` end with one line, ``tool.py: error: ...``, if it raises UserError.

    Args:
        main: Runs the tool; returns its exit code, or None for 0.

    Returns:
        ``main`` that always returns an exit code: 2 after a :class:`UserError`, which is printed to
        stderr. Other exceptions pass.
    """

    @wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            print(f'{Path(sys.argv[0]).name}: error: {error}', file=sys.stderr)
            return 2

    return wrapped


def few(names: Sequence, limit: int = 5) -> str:
    """List the first of some names, and how many there are."""
    shown = ', '.join(map(str, names[:limit]))
    return shown if len(names) <= limit else f'{shown}, ... ({len(names)} in all)'


def first_difference(there: Sequence[str], here: Sequence[str]) -> str:
    """Describe where two lists of class names first differ."""
    pairs = enumerate(zip_longest(there, here))
    i, (name, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    return f'class {i} is {name!r} there and {other!r} here'


def one_line(error: Exception) -> str:
    """Kind and message of an error, without line breaks and the final full stop."""
    return ' '.join(f'{type(error).__name__}: {error}'.split()).rstrip('.')
