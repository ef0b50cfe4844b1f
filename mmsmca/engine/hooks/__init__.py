"""Training hooks, registered in ``HOOKS``.

:mod:`.spatial_prior_hook` is not among them: it draws, and is imported by the configs that use it.
"""

from .atomic_checkpoint_hook import AtomicCheckpointHook
from .compile_hook import CompileHook
from .epoch_seed_hook import EpochSeedHook
from .fresh_classifier_hook import FreshClassifierHook

__all__ = ['AtomicCheckpointHook', 'CompileHook', 'EpochSeedHook', 'FreshClassifierHook']
