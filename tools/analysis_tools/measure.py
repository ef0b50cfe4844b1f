"""Time and memory of a co-attention, in every implementation and without prior."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from . import benchmarks
from .attention_cases import Setting, case_of

REFERENCES = ('explicit', 'no_prior')
# How PyTorch's names of its fused kernels begin.
KERNELS = '_scaled_dot_product_'
# Heads of what is measured, by key of a row.
COLUMNS = {
    'forward_ms': 'forward, ms',
    'forward_backward_ms': 'forward + backward, ms',
    'extra_mib': 'extra memory, MiB',
    'time_vs_explicit': 'time vs explicit',
    'time_vs_no_prior': 'time vs no prior',
    'memory_vs_explicit': 'memory vs explicit',
    'memory_vs_no_prior': 'memory vs no prior',
}


def measure(
    setting: Setting, implementations: Sequence[str], rounds: int, memory_limit: float
) -> list[dict]:
    """Measure implementations of a co-attention, timed in turns.

    Args:
        setting: What they are measured on.
        implementations: Some of :data:`.attention_cases.IMPLEMENTATIONS`.
        rounds: Timings of each; at 0, memory only.
        memory_limit: Most memory that a process may have on a CPU, in GiB.

    Returns:
        One row an implementation: its ``outcome``, times, extra memory, the kernel that PyTorch
        chose, and its ratios to explicit and to no prior. What could not be measured is missing.
    """
    rows: dict[str, dict] = {name: {} for name in implementations}
    for name, row in rows.items():
        row.update(implementation=name, grid=grid_names(setting), queries=setting.queries)
        # It is not part of every PyTorch on every device.
        with benchmarks.outcome_in(row, optional=name == 'flex'):
            row['extra_mib'] = benchmarks.in_clean_memory(
                extra_memory, name, setting, memory_limit, device=setting.device
            )
        if row.get('extra_mib', 0) is None:
            row['outcome'] = benchmarks.NO_MEMORY
    if rounds:
        forward, training = _times(rows, setting, rounds)
    else:
        forward, training = {}, {}
    for name, row in rows.items():
        if name in forward:
            row['forward_ms'] = 1e3 * statistics.median(forward[name])
        if name in training:
            row['forward_backward_ms'] = 1e3 * statistics.median(training[name])
        for reference in REFERENCES:
            of_reference = rows.get(reference, {}).get('extra_mib')
            if row.get('extra_mib') is not None and of_reference:
                row[f'memory_vs_{reference}'] = row['extra_mib'] / of_reference
            if name in training and reference in training:
                row[f'time_vs_{reference}'] = benchmarks.paired_ratio(
                    training[name], training[reference]
                )
    return list(rows.values())


def grid_names(setting: Setting) -> str:
    """The feature maps of a setting, in words."""
    return ' + '.join(f'{height}x{width}' for height, width in setting.grids)


def extra_memory(implementation: str, setting: Setting, limit_gib: float) -> float | None:
    """Peak of forward and backward over the inputs, in MiB; None if it exceeds the limit."""
    # The first call also loads code and starts threads: not what is measured.
    small = replace(setting, grids=tuple((2, 2) for _ in setting.grids), queries=1)
    case_of(implementation, small).forward_backward()
    case = case_of(implementation, setting)
    if implementation == 'flex':
        # Compiled for these sizes first; the compiler tries kernels out.
        case.forward_backward()
    return benchmarks.peak_memory(case.forward_backward, setting.device, limit_gib)


class KernelSpy(TorchDispatchMode):
    """Hears which fused attention kernel PyTorch runs, which depends on device, precision, mask.

    Attributes:
        kernel: Its name; None if none was run, so that attention weights were in memory.
    """

    kernel: str | None = None

    def __torch_dispatch__(
        self, func: OpOverload, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name.startswith(KERNELS) and not name.endswith('_backward'):
            self.kernel = name.removeprefix(KERNELS)
        return func(*args, **(kwargs or {}))


def _times(
    rows: dict[str, dict], setting: Setting, rounds: int
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Seconds of the forward and of the training pass, by name; notes failures in the rows."""
    forward: dict[str, Callable[[], object]] = {}
    training: dict[str, Callable[[], object]] = {}
    for name, row in rows.items():
        if row['outcome'] == benchmarks.NO_MEMORY:
            continue
        with benchmarks.outcome_in(row, optional=name == 'flex'):
            case = case_of(name, setting)
            case.forward()
            forward[name] = case.forward
            # FlexAttention on a CPU, for example, has no backward pass.
            if row['outcome'] == benchmarks.MEASURED:
                with KernelSpy() as spy:
                    case.forward_backward()
                row['kernel'] = spy.kernel
                training[name] = case.forward_backward
    return (
        benchmarks.interleaved_times(forward, rounds),
        benchmarks.interleaved_times(training, rounds),
    )
