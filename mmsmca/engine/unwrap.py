"""Access to the detector inside its wrappers."""

from typing import Any


def unwrapped(model: Any) -> Any:
    """Unwrap a detector from wrappers for several processes and for test-time augmentation.

    Args:
        model: Model of a runner.

    Returns:
        The detector, found by its backbone: MMEngine's registry has no wrappers for augmentation.
    """
    while not hasattr(model, 'backbone') and hasattr(model, 'module'):
        model = model.module
    return model
