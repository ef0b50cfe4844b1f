"""Lets ``torch.load`` read MMEngine's checkpoints with ``weights_only=True``.

Since PyTorch 2.6, ``torch.load`` by default refuses objects of any class that was not declared
safe. Besides tensors, MMEngine's checkpoints hold the history of logged values: numpy arrays and
scalars in ``HistoryBuffer``. MMEngine 0.10.7 calls ``torch.load`` with the default, so it can
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
    """Replace ``getattr``, by which a pickled ``HistoryBuffer`` refers to its statistics methods.

    ``getattr`` itself would give a checkpoint access to every attribute of every object.

    Raises:
        pickle.UnpicklingError: If a checkpoint asks for anything else.
    """
    if owner is not HistoryBuffer or name not in STATISTICS:
        raise pickle.UnpicklingError(f'a checkpoint may not take {name!r} from {owner!r}')
    return getattr(HistoryBuffer, name)


def register() -> None:
    """Declare the classes in MMEngine's checkpoints safe; repeated calls change nothing."""
    rebuild_array: Any = np.empty(0).__reduce__()[0]
    rebuild_scalar: Any = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals(
        [
            HistoryBuffer,
            (statistics_method, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            # Palettes in `dataset_meta` are arrays of bytes.
            *{type(np.dtype(code)) for code in f'?{np.typecodes["AllInteger"]}efd'},
            # These functions are in differently named modules in numpy 1 and numpy 2.
            (rebuild_array, 'numpy.core.multiarray._reconstruct'),
            (rebuild_array, 'numpy._core.multiarray._reconstruct'),
            (rebuild_scalar, 'numpy.core.multiarray.scalar'),
            (rebuild_scalar, 'numpy._core.multiarray.scalar'),
        ]
    )
