r"""Denormal numbers on a CPU: SMCA makes many, and they are slow.

Far from a query's Gaussian the attention weights are :math:`e^{-90}` and less. Below
:math:`2^{-126}` float32 is denormal, which Intel's processors handle in microcode: a training pass
of the co-attention took 2.6 to 2.9 times as long. As zeros they cost nothing, and change no result
by more than :math:`10^{-38}`.

A processor keeps the setting for every thread; a new thread takes over that of the one that starts
it. So it is set when a detector is built: before PyTorch starts its threads, in every process.
Kernels on a GPU have nothing to do with it.
"""

import os

import torch


def flush_denormals() -> None:
    """Let this thread, and those it starts from now on, take denormal numbers as zeros.

    Does nothing where the environment variable ``MMSMCA_FLUSH_DENORMAL`` is 0, or the processor
    has no such setting.
    """
    if switched_on():
        torch.set_flush_denormal(True)


def switched_on() -> bool:
    """Whether the environment variable ``MMSMCA_FLUSH_DENORMAL`` is not 0."""
    return os.environ.get('MMSMCA_FLUSH_DENORMAL') != '0'


def denormals_flushed() -> bool:
    """Whether denormal numbers are zeros in this thread and in all that PyTorch computes with."""
    # Enough that every thread gets a portion.
    numbers = torch.full((torch.get_num_threads() * 2**16,), 2.0**-126) / 2
    # By its bits: for a thread that flushes, a denormal number equals zero.
    return not numbers.view(torch.int32).any().item()
