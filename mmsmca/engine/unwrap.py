"""The detector inside what wraps it."""

from typing import Any


def unwrapped(model: Any) -> Any:
    """The detector inside wrappers for several processes, and for test-time augmentation.

    Args:
        model: What a runner has as its model.

    Returns:
        The detector: MMEngine's registry of wrappers does not know those of test-time augmentation.
    """
    while not hasattr(model, 'backbone') and hasattr(model, 'module'):
        model = model.module
    return model
