"""Lets ``torch.load`` read MMEngine's checkpoints with ``weights_only=True``.

Since PyTorch 2.6, ``torch.load`` by default refuses objects of any class that was not declared
safe. Besides tensors, MMEngine's checkpoints hold the history of logged values (numpy arrays and
scalars in ``HistoryBuffer``) and name functions of two classes. MMEngine 0.10.7 calls
``torch.load`` with the default, so it can neither resume from nor load its own checkpoints;
onedl-mmengine can.

Delete this module once every MMEngine that :mod:`mmsmca.compat` accepts reads its own checkpoints.
"""

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.optim.scheduler.param_scheduler import OneCycleParamScheduler

# Statistics of logged values, and how OneCycleLR anneals.
METHODS: dict[type, tuple[str, ...]] = {
    HistoryBuffer: ('min', 'max', 'mean', 'current'),
    OneCycleParamScheduler: ('_annealing_cos', '_annealing_linear'),
}


def method(owner: type, name: str) -> Callable:
    """Replace ``getattr``, by which a pickle refers to a function of a class.

    ``getattr`` itself would give a checkpoint access to every attribute of every object.

    Raises:
        pickle.UnpicklingError: If a checkpoint asks for anything else.
    """
    if not isinstance(owner, type) or name not in METHODS.get(owner, ()):
        raise pickle.UnpicklingError(f'a checkpoint may not take {name!r} from {owner!r}')
    return getattr(owner, name)


def register() -> None:
    """Declare the classes in MMEngine's checkpoints safe; repeated calls change nothing."""
    rebuild_array: Any = np.empty(0).__reduce__()[0]
    rebuild_scalar: Any = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals(
        [
            *METHODS,
            (method, 'builtins.getattr'),
            np.ndarray,
            np.dtype,
            # `dataset_meta` may hold arrays of any type; those of objects are left out.
            *{type(np.dtype(code)) for code in np.typecodes['All'].replace('O', '')},
            ConfigDict,
            # These functions are in differently named modules in numpy 1 and numpy 2.
            (rebuild_array, 'numpy.core.multiarray._reconstruct'),
            (rebuild_array, 'numpy._core.multiarray._reconstruct'),
            (rebuild_scalar, 'numpy.core.multiarray.scalar'),
            (rebuild_scalar, 'numpy._core.multiarray.scalar'),
        ]
    )
