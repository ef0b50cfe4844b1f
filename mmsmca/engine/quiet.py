"""Suppression of the libraries' log messages and warnings for a while."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger


@contextmanager
def quiet(level: int) -> Iterator[None]:
    """Drop Python's warnings and log messages up to a level, also those of MMEngine's loggers.

    Args:
        level: A level of :mod:`logging`; the warnings' is ``WARNING``.
    """
    disabled = logging.root.manager.disable
    _disable(max(disabled, level))
    try:
        with warnings.catch_warnings():
            if level >= logging.WARNING:
                warnings.simplefilter('ignore')
            yield
    finally:
        _disable(disabled)


def _disable(level: int) -> None:
    logging.disable(level)
    # MMEngine's loggers cache which levels are enabled; this clears the caches of all of them.
    logger = MMLogger.get_current_instance()
    logger.setLevel(logger.level)
