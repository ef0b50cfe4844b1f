"""Measure time and memory of detectors and co-attentions in turns."""

import statistics
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from benchmarks import (
    MIB,
    NO_MEMORY,
    give_memory_back,
    in_fresh_process,
    outcome_in,
    peak_memory,
)
from cases import MODES, Detector, Setting
from co_attention import CoAttention
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from mmsmca.engine.timing import interleaved_times, paired_ratio, paired_spread

# Prefix of PyTorch's names of its fused kernels.
KERNELS = '_scaled_dot_product_'


def measure(
    subjects: Mapping[str, Detector | CoAttention],
    setting: Setting,
    rounds: int,
    memory_limit: float | None = None,
    modes: Sequence[str] = tuple(MODES),
    references: Sequence[str] = (),
    known: Mapping[str, dict] | None = None,
) -> list[dict]:
    """Measure subjects in turns.

    Memory includes the parameters and optimizer of a detector, but not the inputs of a
    co-attention. On a CPU it is measured in a separate process, but not for FlexAttention, whose
    compiler would be counted.

    Args:
        subjects: Subjects by name.
        setting: Setting of the measurement.
        rounds: Number of timings of each; 0 measures memory only.
        memory_limit: Memory limit of a process on a CPU, in GiB. Defaults to None: memory is not
            measured there.
        modes: Keys of :data:`.cases.MODES`. Defaults to all.
        references: Names of the subjects to compute ratios to. Defaults to none.
        known: Rows with memory that was measured earlier, by name. Defaults to none.

    Returns:
        A row per subject: its ``name`` and ``outcome``; for every mode (here ``train``) the median
        ``train_ms``, the peak ``train_mib`` (None if memory did not suffice), and
        ``train_images_per_s``; for every reference ``train_time_vs_...``, the median over the
        rounds of the ratio within a round, ``train_quartiles_vs_...`` and
        ``train_memory_vs_...``; ``train_operations``, see :class:`OperationSpy`; and ``kernel``,
        the fused attention kernel that ran last in training. What could not be measured is missing.
    """
    rows: dict[str, dict] = {name: dict(name=name) for name in subjects}
    calls: dict[str, dict] = {mode: {} for mode in modes}
    for name, subject in subjects.items():
        row = rows[name]
        with outcome_in(row, subject.optional):
            before = (known or {}).get(name, {})
            row.update({k: x for k, x in before.items() if k.endswith('_mib')})
            on_cpu = setting.device == 'cpu' and memory_limit is not None
            if on_cpu and not subject.optional:
                for mode in modes:
                    if f'{mode}_mib' not in row:
                        row[f'{mode}_mib'] = in_fresh_process(
                            _memory, subject, mode, setting, memory_limit
                        )
                        if row[f'{mode}_mib'] is None:
                            row['outcome'] = NO_MEMORY
            if rounds:
                _start(subject, setting, row, calls)
    for mode in modes:
        times = interleaved_times(calls[mode], rounds)
        for name, row in rows.items():
            if name in times:
                row[f'{mode}_ms'] = 1e3 * statistics.median(times[name])
                row[f'{mode}_images_per_s'] = 1e3 * setting.batch / row[f'{mode}_ms']
            for reference in references:
                if name in times and reference in times:
                    pair = times[name], times[reference]
                    row[f'{mode}_time_vs_{reference}'] = paired_ratio(*pair)
                    row[f'{mode}_quartiles_vs_{reference}'] = paired_spread(*pair)
                mib, of_reference = (x.get(f'{mode}_mib') for x in (row, rows[reference]))
                if mib and of_reference:
                    row[f'{mode}_memory_vs_{reference}'] = mib / of_reference
    return list(rows.values())


def _start(
    subject: Detector | CoAttention, setting: Setting, row: dict, calls: dict[str, dict]
) -> None:
    """Build a subject, call every mode for the first time, and add the calls to those to time.

    Memory on a GPU is measured here, because its allocator counts exactly.
    """
    on_gpu = setting.device != 'cpu'
    allocated = torch.cuda.memory_allocated() if on_gpu else 0
    case = subject.build(setting)
    if on_gpu and isinstance(subject, CoAttention):
        allocated = torch.cuda.memory_allocated()
    # Inference first: gradients and optimizer state stay allocated once they exist.
    for mode in sorted(calls):  # test, train
        if row.get(f'{mode}_mib', 0) is None:
            continue
        call = getattr(case, mode)
        if on_gpu:
            give_memory_back()
            torch.cuda.reset_peak_memory_stats()
        # FlexAttention, which is optional, does not work under a dispatch mode.
        with nullcontext() if subject.optional else OperationSpy() as spy:
            call()
        if spy is not None:
            row[f'{mode}_operations'] = spy.operations
            if isinstance(subject, CoAttention):
                row['kernel'] = spy.kernel
        if on_gpu:
            call()  # With the optimizer state.
            torch.cuda.synchronize()
            row[f'{mode}_mib'] = (torch.cuda.max_memory_allocated() - allocated) / MIB
        calls[mode][row['name']] = call


def _memory(
    subject: Detector | CoAttention, mode: str, setting: Setting, limit_gib: float | None
) -> float | None:
    """Peak memory of a subject on a CPU, in MiB; None if it exceeds the limit."""
    if isinstance(subject, CoAttention):
        # The first call also loads code and starts threads, which are not to be measured.
        getattr(subject.small().build(setting), mode)()
        return peak_memory(getattr(subject.build(setting), mode), limit_gib)

    def call_twice() -> None:
        # The optimizer state exists from the second step on.
        case = subject.build(setting)
        for _ in range(2):
            getattr(case, mode)()

    return peak_memory(call_twice, limit_gib)


class OperationSpy(TorchDispatchMode):
    """Counts operations, and records which fused attention kernel PyTorch chooses.

    Attributes:
        operations: Number of operations that are not views. On a GPU, each launches a kernel or
            more; with small batches, that takes longer than their computation.
        kernel: Name of the last kernel; None if none ran, so that attention weights were in memory.
    """

    operations: int = 0
    kernel: str | None = None

    def __torch_dispatch__(
        self, func: OpOverload, types: tuple, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        self.operations += not func.is_view
        name = func.overloadpacket.__name__
        if name.startswith(KERNELS) and not name.endswith('_backward'):
            self.kernel = name.removeprefix(KERNELS)
        return func(*args, **(kwargs or {}))
