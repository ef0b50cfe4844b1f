"""What stops a run before it starts; the tools print the message as one line and exit with 2."""

from collections.abc import Sequence
from itertools import zip_longest


class ConfigError(ValueError):
    """A config, or a checkpoint it names, that cannot work. The message names key and remedy."""


class DataError(ValueError):
    """Annotations or images that cannot be used. The message names file and remedy."""


def few(names: Sequence, limit: int = 5) -> str:
    """The first of some names, and how many there are."""
    shown = ', '.join(map(str, names[:limit]))
    return shown if len(names) <= limit else f'{shown}, ... ({len(names)} in all)'


def first_difference(there: Sequence[str], here: Sequence[str]) -> str:
    """Where two lists of class names differ first."""
    pairs = enumerate(zip_longest(there, here))
    i, (name, other) = next((i, pair) for i, pair in pairs if pair[0] != pair[1])
    return f'class {i} is {name!r} there and {other!r} here'


def one_line(error: Exception) -> str:
    """Kind and message of an error, without its line breaks and the final stop."""
    return ' '.join(f'{type(error).__name__}: {error}'.split()).rstrip('.')
