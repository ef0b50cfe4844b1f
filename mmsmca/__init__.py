"""SMCA-DETR, spatially modulated co-attention, for MMDetection."""

from .compat import check_openmmlab
from .version import __version__

check_openmmlab()

from . import atomic_checkpoint, compile_hook, epoch_seed, flops, fsdp, models, safe_globals  # noqa: E402, F401

safe_globals.register()
flops.register()

__all__ = ['__version__']
