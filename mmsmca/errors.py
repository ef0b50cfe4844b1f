"""Errors that only the user can fix, and how all tools report them."""

import sys
import warnings
from collections.abc import Callable, Generator, Iterable, Sequence
from functools import wraps
from itertools import zip_longest
from pathlib import Path
from typing import ParamSpec, TypeVar

P = ParamSpec('P')
T = TypeVar('T')


class UserError(ValueError):
    """Base class; the message is one line that names the key or file, and the remedy."""


class ConfigError(UserError):
    """A config, or a checkpoint it names, that cannot work; the message names key and remedy."""


class DataError(UserError):
    """Annotations or images that cannot be used; the message names file and remedy."""


class RepairableError(DataError):
    """Annotations that ``tools/check_data.py --renumber`` can correct.

    Args:
        message: Without this remedy, which is added.
        path: The annotation file.
    """

    def __init__(self, message: str, path: str) -> None:
        super().__init__(f'{message} tools/check_data.py --renumber writes a corrected copy.')
        self.path = path


class DivergedError(UserError):
    """Training whose predictions are no longer finite; the message says when, and the remedy."""


# Checks yield all that they find. The first line of a message can stand alone; further lines list
# what it counts.
Fault = UserError | UserWarning
Found = Generator[Fault, None, T]


def raise_first(faults: Iterable[Fault]) -> None:
    """Raise the first error that checks find, as one line, and warn of what they find before it.

    Raises:
        UserError: The first error.
    """
    for fault in faults:
        fault.args = (str(fault).partition('\n')[0],)
        if isinstance(fault, UserError):
            raise fault
        warnings.warn(fault, stacklevel=2)


def command(main: Callable[P, int | None]) -> Callable[P, int]:
    """Make a tool's ``main`` end with one line, ``tool.py: error: ...``, if it raises UserError.

    Args:
        main: Runs the tool; returns its exit code, or None for 0.

    Returns:
        A ``main`` that always returns an exit code: 2 after a :class:`UserError`, which is printed
        to stderr. Other exceptions propagate.
    """

    @wraps(main)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return main(*args, **kwargs) or 0
        except UserError as error:
            print(f'{Path(sys.argv[0]).name}: error: {error}', file=sys.stderr)
            return 2

    return wrapped


def shorten(names: Sequence, limit: int = 5) -> str:
    """Join the first ``limit`` names, followed by the total number if there are more."""
    shown = ', '.join(map(str, names[:limit]))
    return shown if len(names) <= limit else f'{shown}, ... ({len(names)} in all)'


def listed_below(names: Iterable) -> str:
    """Further lines of a message, one per name."""
    return ''.join(f'\n    {name}' for name in names)


def first_difference(there: Sequence[str], here: Sequence[str]) -> str:
    """Describe where two lists of class names first differ."""
    pairs = enumerate(zip_longest(there, here))
    i, (name, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    return f'class {i} is {name!r} there and {other!r} here'


def one_line(error: Exception) -> str:
    """Type and message of an error, without line breaks or a final full stop."""
    return ' '.join(f'{type(error).__name__}: {error}'.split()).rstrip('.')
