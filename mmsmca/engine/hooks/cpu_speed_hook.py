"""What makes the steps of any detector faster on a CPU, and changes no result."""

import ctypes
import os
import sys

import torch
from mmengine.device import get_device
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

# Numbers of glibc's parameters, see mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
GLIBC_VARIABLES = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_MMAP_MAX_')


def keep_freed_memory() -> bool:
    """Let this process keep what tensors free, for the tensors to come.

    glibc gives blocks of more than 32 MiB back to the system at once. The next tensor of that size
    gets them anew, page by page, each filled with zeros: a fifth of a DETR's training step at
    800 x 1333 pixels.

    Returns:
        Whether it does: False where the C library is another than glibc, or one of
        :data:`GLIBC_VARIABLES` is set: then that counts.
    """
    if not sys.platform.startswith('linux') or any(name in os.environ for name in GLIBC_VARIABLES):
        return False
    mallopt = getattr(ctypes.CDLL(None), 'mallopt', None)
    if mallopt is None:
        return False
    # Older ones know no threshold above 32 MiB, but going without mmap.
    return bool(
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        and (mallopt(M_MMAP_THRESHOLD, 2**30) or mallopt(M_MMAP_MAX, 0))
    )


@HOOKS.register_module()
class CPUSpeedHook(Hook):
    """The backbone in channels-last layout, and freed memory kept, where there is no accelerator.

    For training and inference of any detector with a convolutional ``backbone``; on a GPU it does
    nothing::

        custom_hooks = [dict(type='CPUSpeedHook')]

    What it gives is in ``docs/performance.md``.
    """

    def before_run(self, runner: Runner) -> None:
        """Change the layout of the backbone's weights, which its maps follow, and the allocator.

        Args:
            runner: Runner of the training, validation or test.
        """
        if get_device() != 'cpu':
            return
        keep_freed_memory()
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        model.backbone.to(memory_format=torch.channels_last)
