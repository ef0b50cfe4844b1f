"""Time and peak memory, measured so that ratios hold on a machine that others use too."""

import argparse
import gc
import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from mmsmca.engine.timing import (  # noqa: F401
    _seconds,
    cpu_name,
    driver_version,
    environment,
    in_own_process,
    interleaved_times,
    paired_ratio,
    paired_spread,
    timer,
)
from mmsmca.errors import UserError, one_line
from mmsmca.files import write_json  # noqa: F401

MIB = 2**20
DTYPES = ('float32', 'bfloat16', 'float16')
# How a measurement ends; behind the last two, the error.
MEASURED, NO_MEMORY = 'measured', 'out of memory'
NOT_AVAILABLE, FAILED = 'not available: ', 'failed: '
# What PyTorch, CUDA, cuBLAS and cuDNN say.
NO_MEMORY_MESSAGES = ('out of memory', "can't allocate memory", 'ALLOC_FAILED')
# Of a message: errors of compilers go on for pages.
MESSAGE_LENGTH = 300


def argument_parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Command line that all benchmarks have in common.

    Args:
        description: What the benchmark measures.
        rounds: Default of ``--rounds``.

    Returns:
        A parser of ``--rounds``, ``--memory-limit`` and ``--json``, whose help names the defaults.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('--rounds', type=int, default=rounds, help='timings of each; 0: none')
    parser.add_argument(
        '--memory-limit', type=float, default=12, metavar='GIB',
        help='on a CPU, memory of what needs more is given as a dash',
    )  # fmt: skip
    parser.add_argument('--json', help='file for the rows')
    return parser


def add_torch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what a benchmark of PyTorch runs on: ``--dtype``, ``--device`` and ``--threads``."""
    parser.add_argument(
        '--dtype', choices=DTYPES, default='float32', help='other than float32: by autocast'
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--threads', type=int, default=2, help='threads on a CPU')


def settings(args: argparse.Namespace, *others: str) -> dict:
    """What rows say about how they were measured: the command line and :func:`environment`.

    Args:
        args: The command line, of :func:`argument_parser`.
        others: Arguments that are no settings of a row, besides ``--json``.
    """
    given = {key: value for key, value in vars(args).items() if key not in ('json', *others)}
    return {**given, **environment(vars(args).get('device', 'cpu'))}


def kept_rows(path: str | Path | None, settings: dict) -> list[dict]:
    """Rows that an earlier call wrote and this one goes on from.

    Args:
        path: Their file; None, or a file that does not exist yet, has none.
        settings: What :func:`settings` gives now. All but the date have to be the rows'.

    Raises:
        UserError: If the file holds no rows, or they were measured otherwise. The message names
            file, difference and remedy.
    """
    if path is None or not Path(path).exists():
        return []
    remedy = 'name another file or delete this one'
    try:
        rows = json.loads(Path(path).read_text())
        found = [dict(row) for row in rows]
    except (ValueError, TypeError) as error:
        raise UserError(f'{path} holds no rows of a benchmark: {remedy}') from error
    # As they come out of a file: lists, no tuples.
    for key, here in json.loads(json.dumps(settings)).items():
        there = next((row.get(key) for row in found if row.get(key) != here), here)
        if key != 'date' and there != here:
            raise UserError(f'{path} was measured with {key} {there}, not {here}: {remedy}')
    return found


def in_fresh_process(function: Callable, *args: object) -> Any:
    """Result of a module's function in a process of its own, where nothing was allocated before.

    There, glibc gives whatever is freed back at once, as long as it is not tiny. Otherwise
    it keeps some of it, and how much differs from run to run.

    Raises:
        BrokenProcessPool: If the process was killed, for example for its memory.
    """
    os.environ['MALLOC_MMAP_THRESHOLD_'] = '65536'
    return in_own_process(function, *args)


def in_clean_memory(function: Callable, *args: object, device: str) -> Any:
    """Result of a module's function that calls :func:`peak_memory`, where that tells something.

    Args:
        function: On a CPU it is called in a fresh process. A GPU's allocator counts exactly: there
            it is called here, after what earlier calls left is given back.
        args: Its arguments.
        device: ``cpu`` or ``cuda``.
    """
    if device == 'cpu':
        return in_fresh_process(function, *args)
    give_memory_back()
    return function(*args)


def give_memory_back() -> None:
    """Free what nobody refers to any more, a GPU's memory too."""
    gc.collect()
    torch.cuda.empty_cache()  # Without effect where there is no GPU.


def out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory did not suffice, whichever library says so."""
    return isinstance(error, RuntimeError) and any(
        message in str(error) for message in NO_MEMORY_MESSAGES
    )


@contextmanager
def outcome_in(row: dict, optional: bool = False) -> Iterator[None]:
    """Let a row say how its measurement ended, so that an error does not end the others.

    Args:
        row: Its ``outcome`` becomes ``NO_MEMORY`` or, with the error behind it, ``FAILED`` after
            one, and else ``MEASURED``, unless an earlier part of the measurement ended otherwise.
        optional: Whether it may fail: then it is ``NOT_AVAILABLE``. Defaults to False.
    """
    try:
        yield
        row.setdefault('outcome', MEASURED)
    except Exception as error:
        message = (NOT_AVAILABLE if optional else FAILED) + one_line(error)
        row['outcome'] = NO_MEMORY if out_of_memory(error) else message[:MESSAGE_LENGTH]
        # Its frames hold on to tensors.
        error.__traceback__ = None
        give_memory_back()


def failures(rows: Sequence[dict]) -> list[str]:
    """Outcomes of the rows whose measurement failed, for another reason than memory."""
    return [row['outcome'] for row in rows if row['outcome'].startswith(FAILED)]


def peak_memory(
    call: Callable[[], object], device: str, limit_gib: float | None = None
) -> float | None:
    """Memory that a call needs on top of what is allocated when it starts, at its peak.

    On a CPU that is the growth of the process's resident memory, from Linux's account of it. Only
    in a fresh process does it tell anything: a later call reuses what an earlier one freed.

    Args:
        call: What to measure.
        device: ``cpu`` or ``cuda``.
        limit_gib: On a CPU, the most memory that the process may have, in GiB. Defaults to None:
            no limit.

    Returns:
        MiB, or None if the memory did not suffice.
    """
    peak: Callable[[], int]
    if device != 'cpu':
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        peak = torch.cuda.max_memory_allocated
    else:
        if limit_gib is not None:
            import resource  # Windows has none.

            limit = round(limit_gib * 2**30)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        Path('/proc/self/clear_refs').write_text('5')  # Resets the peak to what is resident now.
        before = _peak_resident()
        peak = _peak_resident
    try:
        call()
        if device != 'cpu':
            torch.cuda.synchronize()
    except RuntimeError as error:
        if out_of_memory(error):
            return None
        raise
    return (peak() - before) / MIB


def _peak_resident() -> int:
    """Most memory that this process had since the peak was reset, in bytes.

    Not ``ru_maxrss``: a process inherits its parent's, and it cannot be reset.
    """
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) * 1024


def setting(environment: dict) -> str:
    """One line on where numbers were measured, from what :func:`environment` returns."""
    denormals = 'flushed to zero' if environment['denormals_flushed'] else 'computed with'
    return (
        f'{environment["hardware"]}, {environment["threads"]} threads, denormal numbers {denormals}'
    )


def markdown_table(rows: Sequence[dict], columns: dict[str, str]) -> str:
    """Write rows as a Markdown table.

    Args:
        rows: What to write. Missing values and None become a dash.
        columns: Head of every column, by key of the rows.
    """

    def cell(value: object) -> str:
        if value is None:
            return '-'
        if not isinstance(value, float):
            return str(value).replace('|', '\\|')
        return f'{value:.0f}' if abs(value) >= 100 else f'{value:.3g}'

    lines = [columns.values(), ['---'] * len(columns)]
    lines += [[cell(row.get(key)) for key in columns] for row in rows]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)
