"""Training hooks, registered in ``HOOKS``."""

from .atomic_checkpoint_hook import AtomicCheckpointHook
from .epoch_seed_hook import EpochSeedHook
from .fresh_classifier_hook import FreshClassifierHook
from .resume_schedule_hook import ResumeScheduleHook

__all__ = [
    'AtomicCheckpointHook',
    'EpochSeedHook',
    'FreshClassifierHook',
    'ResumeScheduleHook',
]
