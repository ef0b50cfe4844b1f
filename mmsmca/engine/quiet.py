"""Libraries that have nothing to say for a while."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.logging import MMLogger


@contextmanager
def quiet(level: int) -> Iterator[None]:
    """Drop what is logged up to a level, by MMEngine's loggers too.

    Args:
        level: As :mod:`logging` has it.
    """
    disabled = logging.root.manager.disable
    _disable(max(disabled, level))
    try:
        yield
    finally:
        _disable(disabled)


def _disable(level: int) -> None:
    logging.disable(level)
    # MMEngine's loggers remember which levels they write; this makes all of them look again.
    logger = MMLogger.get_current_instance()
    logger.setLevel(logger.level)
