r"""Flushing of denormal numbers, of which SMCA produces many and which are slow on a CPU.

Far from a query's Gaussian, attention weights are :math:`e^{-90}` or less. Below :math:`2^{-126}`,
float32 numbers are denormal, and Intel's processors handle those in microcode: a training pass of
the co-attention took 2.6 to 2.9 times as long. Flushed to zero they cost nothing, and no result
changes by more than :math:`10^{-38}`.

The setting is per thread, and a new thread inherits it from the thread that starts it. Building a
detector therefore sets it, in every process, before PyTorch starts its threads. GPU kernels are
not affected.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def flush_denormals() -> None:
    """Make this thread, and those it starts from now on, flush denormal numbers to zero.

    Does nothing if the environment variable ``MMSMCA_FLUSH_DENORMAL`` is 0 or the processor has no
    such setting.
    """
    if switched_on():
        torch.set_flush_denormal(True)


@contextmanager
def denormals_kept() -> Iterator[None]:
    """Keep denormal numbers in this thread, for libraries that fail where they are flushed."""
    flushed = not (torch.tensor(2.0**-126) / 2).view(torch.int32).item()
    torch.set_flush_denormal(False)
    try:
        yield
    finally:
        torch.set_flush_denormal(flushed)


def switched_on() -> bool:
    """Whether the environment variable ``MMSMCA_FLUSH_DENORMAL`` is not 0."""
    return os.environ.get('MMSMCA_FLUSH_DENORMAL') != '0'


def denormals_flushed() -> bool:
    """Whether this thread and all of PyTorch's threads flush denormal numbers to zero."""
    # Enough numbers for every thread to get some.
    numbers = torch.full((torch.get_num_threads() * 2**16,), 2.0**-126) / 2
    # Compare bits: to a thread that flushes, a denormal number equals zero.
    return not numbers.view(torch.int32).any().item()
