"""SMCA-DETR, spatially modulated co-attention, for MMDetection."""

from .compat import check_openmmlab, import_quietly
from .version import __version__

check_openmmlab()

from .operators import provide_operators  # noqa: E402

provide_operators()
import_quietly()

from . import config_scope, models  # noqa: E402, F401
from .checkpoints import safe_globals  # noqa: E402
from .engine import coco_metric, flops, grouped_optim_constructor, hooks  # noqa: E402, F401
from .launch import CheckedRunner  # noqa: E402, F401

config_scope.register()
safe_globals.register()
flops.register()

__all__ = ['__version__']
