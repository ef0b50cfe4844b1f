"""Checks of config values, shared by several modules."""

import math
from collections.abc import Iterable, Sequence
from numbers import Integral, Real
from typing import Any


def check_count(key: str, value: Any, least: int = 1) -> None:
    """Raise a ValueError if a value is not an integer, or is too small.

    Args:
        key: Key of the value in the config.
        value: The configured value.
        least: The smallest allowed value. Defaults to 1.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < least:
        raise ValueError(f'{key}={value!r} must be an integer of at least {least}')


def check_positive(key: str, value: Any) -> None:
    """Raise a ValueError if a value is not a positive number; arguments as in `check_count`."""
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < float(value) < math.inf:
        raise ValueError(f'{key}={value!r} must be a positive number')


def check_choice(key: str, value: Any, choices: Iterable[str]) -> None:
    """Raise a ValueError if a value is not one of ``choices``; see `check_count`."""
    if value not in choices:
        raise ValueError(f'{key}={value!r} is unknown; choose one of {list(choices)}')


def check_heads(embed_dims: Any, num_heads: Any, where: str = '') -> None:
    """Raise a ValueError if a number of heads does not divide a number of channels.

    Args:
        embed_dims: The configured channels.
        num_heads: The configured heads.
        where: What precedes the two keys in the config, with a dot. Defaults to nothing.
    """
    check_count(f'{where}embed_dims', embed_dims)
    check_count(f'{where}embed_dims={embed_dims}, {where}num_heads', num_heads)
    if embed_dims % num_heads:
        raise ValueError(f'{where}num_heads={num_heads} must divide embed_dims={embed_dims}')


def check_strides(strides: Any) -> tuple[int, ...]:
    """Check ``model.strides``.

    Args:
        strides: The configured value.

    Returns:
        One positive stride per level, in pixels.

    Raises:
        ValueError: If ``strides`` does not list positive integers.
    """
    listed = isinstance(strides, Sequence) and not isinstance(strides, str) and len(strides) > 0
    if not listed or any(not isinstance(s, Integral) or s <= 0 for s in strides):
        raise ValueError(
            f'model.strides={strides!r} must list a positive stride per level, in pixels: '
            '[32] for a single level'
        )
    return tuple(strides)
