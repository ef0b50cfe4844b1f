"""What the benchmarks share: settings, time and memory in turns with a rival, tables."""

import argparse
import os
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from mmsmca.denormals import flush_denormals
from mmsmca.engine.timing import (
    environment,
    in_own_process,
    interleaved_times,
    paired_ratio,
    paired_spread,
)
from mmsmca.errors import one_line

MIB = 2**20
# tf32: float32 whose matrix products and convolutions may round to TF32; in float32 they may not.
DTYPES = ('float32', 'tf32', 'bfloat16', 'float16')
MODES = {'train': 'training step', 'test': 'inference'}
# Columns of what :func:`measure` measures.
COSTS: dict[str, str] = {}
for _mode, _title in MODES.items():
    COSTS |= {
        f'{_mode}_ms': f'{_title}, ms',
        f'{_mode}_ratio': "the first's = 1",
        f'{_mode}_quartiles': 'quartiles',
        f'{_mode}_mib': f'{_title}, MiB',
    }
COSTS['error'] = 'error'


class Case(NamedTuple):
    """A training step and an inference to measure."""

    train: Callable[[], object]
    test: Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """Precision, device and, on a CPU, threads of a measurement.

    Attributes:
        dtype: One of :data:`DTYPES`, where autocast applies the halves; or ``float64``.
        device: ``cpu`` or ``cuda``.
        threads: Number of threads on a CPU.
    """

    dtype: str = 'float32'
    device: str = 'cpu'
    threads: int = 2

    def prepare(self) -> None:
        """Set up this process: seed, threads, TF32, denormal numbers."""
        torch.manual_seed(0)
        torch.set_num_threads(self.threads)
        flush_denormals()
        torch.backends.cuda.matmul.allow_tf32 = self.dtype == 'tf32'
        torch.backends.cudnn.allow_tf32 = self.dtype == 'tf32'

    @property
    def amp(self) -> torch.dtype | None:
        """Precision of autocast; None without autocast."""
        return getattr(torch, self.dtype) if self.dtype in ('bfloat16', 'float16') else None

    @property
    def weights(self) -> torch.dtype:
        """Precision of the weights."""
        return torch.float64 if self.dtype == 'float64' else torch.float32

    def autocast(self) -> torch.autocast:
        """Context for the forward pass."""
        return torch.autocast(self.device, self.amp, enabled=self.amp is not None)


def argument_parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Parser of ``--rounds`` and ``--json``, whose help shows the defaults."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=rounds, help='number of timings of each')
    parser.add_argument('--json', help='file for the rows')
    return parser


def add_torch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of PyTorch benchmarks: ``--dtype``, ``--device`` and ``--threads``."""
    parser.add_argument(
        '--dtype', choices=DTYPES, nargs='+', default=['float32'], help='halves use autocast'
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--threads', type=int, default=2, help='threads on a CPU')


def settings(args: argparse.Namespace) -> dict:
    """What is stored with the rows: the command line and the environment."""
    if vars(args).get('device') == 'cuda' and not torch.cuda.is_available():
        raise SystemExit(f'--device cuda: PyTorch {torch.__version__} finds no GPU')
    flush_denormals()
    given = {key: value for key, value in vars(args).items() if key not in ('json', 'plot')}
    return dict(given, environment=environment(given.get('device', 'cpu')))


def measure(
    builds: Mapping[str, Callable[[], Case]],
    setting: Setting,
    rounds: int,
    modes: Sequence[str] = tuple(MODES),
    memory_of_build: bool = True,
) -> list[dict]:
    """Measure cases in turns; ratios are to the first.

    Memory is the peak on top of what the process has before. On a CPU, it is measured in a fresh
    process.

    Args:
        builds: Picklable functions that build the cases, by name.
        setting: Device of the cases.
        rounds: Number of timings of each.
        modes: Keys of :data:`MODES`. Defaults to all.
        memory_of_build: Whether memory includes what ``builds`` allocate. Defaults to True.

    Returns:
        A row per case: its ``name``; for every mode, here ``train``, the median ``train_ms``,
        ``train_ratio``, the median over the rounds of the ratio within a round, its
        ``train_quartiles``, and the peak ``train_mib``. After an error, its ``error`` instead.
    """
    rows = {name: dict[str, Any](name=name) for name in builds}
    calls: dict[str, dict[str, Callable]] = {mode: {} for mode in modes}
    for name, build in builds.items():
        with error_in(rows[name]):
            started = _start(build, setting, modes, memory_of_build)
            for mode, (call, mib) in started.items():
                rows[name][f'{mode}_mib'] = mib
                calls[mode][name] = call
    first = next(iter(builds))
    for mode in modes:
        times = interleaved_times(calls[mode], rounds)
        for name, seconds in times.items():
            rows[name][f'{mode}_ms'] = 1e3 * statistics.median(seconds)
            if first in times:
                rows[name][f'{mode}_ratio'] = paired_ratio(seconds, times[first])
                rows[name][f'{mode}_quartiles'] = paired_spread(seconds, times[first])
    return list(rows.values())


def _start(
    build: Callable[[], Case], setting: Setting, modes: Sequence[str], memory_of_build: bool
) -> dict[str, tuple[Callable, float]]:
    """Build a case and measure its memory; by mode, the call to time and its memory in MiB."""
    if setting.device == 'cpu':
        peaks = {m: in_fresh_process(_peak, build, m, memory_of_build) for m in modes}
        case = build()
        return {mode: (getattr(case, mode), mib) for mode, mib in peaks.items()}
    torch.cuda.empty_cache()
    allocated = torch.cuda.memory_allocated()
    case, started = build(), {}
    if not memory_of_build:
        allocated = torch.cuda.memory_allocated()
    # Inference first: gradients and optimizer state stay allocated once they exist.
    for mode in sorted(modes):
        torch.cuda.reset_peak_memory_stats()
        for _ in range(2):  # The optimizer state exists from the second step on.
            getattr(case, mode)()
        mib = (torch.cuda.max_memory_allocated() - allocated) / MIB
        started[mode] = getattr(case, mode), mib
    return started


def _peak(build: Callable[[], Case], mode: str, memory_of_build: bool) -> float:
    def call_twice() -> None:
        call = getattr(build(), mode)
        for _ in range(2):  # The optimizer state exists from the second step on.
            call()

    if memory_of_build:
        return peak_memory(call_twice)
    call = getattr(build(), mode)
    call()  # Loads code and starts threads.
    return peak_memory(call)


@contextmanager
def error_in(row: dict) -> Iterator[None]:
    """Record an error in a row, so that it does not end the other measurements."""
    try:
        yield
    except Exception as error:
        row['error'] = one_line(error)[:300]  # Messages of CUDA are pages long.
        error.__traceback__ = None  # Its frames keep tensors alive.


def in_fresh_process(function: Callable, *args: object) -> Any:
    """Run a module-level function in a fresh process, without earlier allocations.

    In this process, glibc returns freed memory at once, tiny blocks excepted. By default it keeps
    some of it, and the amount differs from run to run; or all, if the caller's environment says so.

    Raises:
        BrokenProcessPool: If the process was killed, for example for its memory.
    """
    returned = dict(
        MALLOC_MMAP_THRESHOLD_='65536', MALLOC_MMAP_MAX_='65536', MALLOC_TRIM_THRESHOLD_='131072'
    )
    with patch.dict(os.environ, returned):
        return in_own_process(function, *args)


def peak_memory(call: Callable[[], object]) -> float:
    """Measure the memory in MiB that a call needs on a CPU on top of what this process already has.

    This is the growth of the resident memory that Linux reports. It is meaningful only in a fresh
    process: a later call reuses what an earlier one freed.
    """
    Path('/proc/self/clear_refs').write_text('5')  # Resets the peak to what is resident now.
    before = _peak_resident()
    call()
    return (_peak_resident() - before) / MIB


def _peak_resident() -> int:
    """Peak resident memory of this process since the peak was reset, in bytes.

    ``ru_maxrss`` is unsuitable: a process inherits its parent's, and it cannot be reset.
    """
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) * 1024


def markdown_table(rows: Sequence[dict], columns: dict[str, str]) -> str:
    """Format rows as a Markdown table of the ``columns`` (headings by key) that some row has."""

    def cell(value: object) -> str:
        if isinstance(value, (list, tuple)):
            return ' to '.join(map(cell, value))
        if not isinstance(value, float):
            return '-' if value is None else str(value).replace('|', '\\|')
        return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'

    columns = {key: title for key, title in columns.items() if any(key in row for row in rows)}
    lines = [columns.values(), ['---'] * len(columns)]
    lines += [[cell(row.get(key)) for key in columns] for row in rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
