"""Lets ``torch.load`` read MMEngine's checkpoints with ``weights_only=True``.

Since PyTorch 2.6 ``torch.load`` refuses, by default, objects of any class that was not declared
safe. Besides tensors, a checkpoint of MMEngine holds the history of what was logged: numpy arrays
and scalars in ``HistoryBuffer``. MMEngine 0.10.7 calls ``torch.load`` with the default, so it can
neither resume from nor load its own checkpoints; onedl-mmengine can.

Delete this module once every MMEngine that :mod:`mmsmca.compat` accepts reads its own checkpoints.
"""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer

STATISTICS = ('min', 'max', 'mean', 'current')


def statistics_method(owner: type, name: str) -> Callable:
    """Stand in for ``getattr``, by which a ``HistoryBuffer`` stores its statistics' methods.

    ``getattr`` itself would open every attribute of every object to a checkpoint.

    Args:
        owner: The class to take the method from, ``HistoryBuffer``.
        name: One of ``STATISTICS``.

    Returns:
        The method.

    Raises:
        pickle.UnpicklingError: If a checkpoint asks for anything else.
    """
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise pickle.UnpicklingError(f'a checkpoint may not take {name!r} from {owner!r}')
    return getattr(HistoryBuffer, name)


def register() -> None:
    """Declare safe what MMEngine's checkpoints hold; doing so again changes nothing."""
    rebuild_array: Any = np.empty(0).__reduce__()[0]
    rebuild_scalar: Any = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (statistics_method, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            # Palettes in `dataset_meta` are of bytes.
            *{type(np.dtype(code)) for code in f'?{np.typecodes["AllInteger"]}efd'},
            # numpy 1 and numpy 2 have these functions in modules of different names.
            (rebuild_array, 'numpy.core.multiarray._reconstruct'),
            (rebuild_array, 'numpy._core.multiarray._reconstruct'),
            (rebuild_scalar, 'numpy.core.multiarray.scalar'),
            (rebuild_scalar, 'numpy._core.multiarray.scalar'),
        ]
    )
