"""Training hooks, registered in ``HOOKS``."""

from .atomic_checkpoint_hook import AtomicCheckpointHook
from .compile_hook import CompileHook
from .cpu_speed_hook import CPUSpeedHook
from .epoch_seed_hook import EpochSeedHook
from .fresh_classifier_hook import FreshClassifierHook
from .resume_schedule_hook import ResumeScheduleHook

__all__ = [
    'AtomicCheckpointHook',
    'CPUSpeedHook',
    'CompileHook',
    'EpochSeedHook',
    'FreshClassifierHook',
    'ResumeScheduleHook',
]
