"""Time and peak memory, measured so that ratios hold on a machine that others use too."""

import argparse
import gc
import json
import os
import platform
import shutil
import statistics
import subprocess
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import mmengine
import numpy as np
import torch
from torch.utils.benchmark import timer

from mmsmca.denormals import denormals_flushed
from mmsmca.errors import UserError, one_line
from mmsmca.files import written_whole
from mmsmca.version import __version__

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


def interleaved_times(
    calls: dict[str, Callable[[], object]], rounds: int, min_seconds: float = 0.1
) -> dict[str, list[float]]:
    """Time calls in turns, so that what slows the machine down for a while slows all of them.

    Args:
        calls: What to time, by name. Each is called once to warm up.
        rounds: How often each is measured.
        min_seconds: A measurement repeats its call until about this time has passed. Defaults to
            0.1 seconds.

    Returns:
        Seconds per call by name, one number a round; work of the accelerator is waited for.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, round(min_seconds / _seconds(call, 1)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            times[name].append(_seconds(call, repeats[name]))
    return times


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = timer()
    for _ in range(repeats):
        call()
    return (timer() - start) / repeats


def paired_ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Median over the rounds of how many times as long as the reference something took.

    Args:
        times: Seconds, one number a round.
        reference: Seconds of the reference in the same rounds.
    """
    return statistics.median(t / r for t, r in zip(times, reference, strict=True))


def paired_spread(times: Sequence[float], reference: Sequence[float]) -> list[float]:
    """The lower and the upper quartile of what :func:`paired_ratio` is the median of."""
    ratios = [t / r for t, r in zip(times, reference, strict=True)]
    return [float(quartile) for quartile in np.quantile(ratios, (0.25, 0.75))]


def in_fresh_process(function: Callable, *args: object) -> Any:
    """Result of a module's function in a process of its own, where nothing was allocated before.

    There, glibc gives whatever is freed back at once, as long as it is not tiny. Otherwise
    it keeps some of it, and how much differs from run to run.

    Raises:
        BrokenProcessPool: If the process was killed, for example for its memory.
    """
    os.environ['MALLOC_MMAP_THRESHOLD_'] = '65536'
    return in_own_process(function, *args)


def in_own_process(function: Callable, *args: object) -> Any:
    """Result of a module's function in a process of its own, which may end as it likes.

    Raises:
        BrokenProcessPool: If the process was killed, for example for its memory.
    """
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


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


def environment(device: str) -> dict[str, Any]:
    """What the numbers depend on besides the settings: date, hardware, versions.

    On a GPU also :func:`gpu_environment`.
    """
    return dict(
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        hardware=torch.cuda.get_device_name() if device == 'cuda' else cpu_name(),
        threads=torch.get_num_threads(),
        denormals_flushed=denormals_flushed(),
        python=platform.python_version(),
        torch=torch.__version__,
        mmcv=mmcv.__version__,
        mmengine=mmengine.__version__,
        mmdet=mmdet.__version__,
        mmsmca=__version__,
        **(gpu_environment() if device == 'cuda' else {}),
    )


def gpu_environment() -> dict[str, Any]:
    """What numbers of a GPU depend on: its memory and architecture, versions, TF32."""
    major, minor = torch.cuda.get_device_capability()
    return dict(
        gpu_memory_gib=round(torch.cuda.get_device_properties(0).total_memory / 2**30, 1),
        compute_capability=f'{major}.{minor}',
        driver=driver_version(),
        cuda=torch.version.cuda,
        cudnn=torch.backends.cudnn.version(),
        # As a run has them: nothing here changes PyTorch's defaults.
        tf32_matrix_products=torch.backends.cuda.matmul.allow_tf32,
        tf32_convolutions=torch.backends.cudnn.allow_tf32,
    )


def driver_version() -> str | None:
    """Version of NVIDIA's driver, or None where ``nvidia-smi`` does not tell."""
    command = shutil.which('nvidia-smi')
    if command is None:
        return None
    done = subprocess.run(
        [command, '--query-gpu=driver_version', '--format=csv,noheader'],
        capture_output=True,
        text=True,
    )
    return done.stdout.splitlines()[0].strip() if done.returncode == 0 and done.stdout else None


def setting(environment: dict) -> str:
    """One line on where numbers were measured, from what :func:`environment` returns."""
    denormals = 'flushed to zero' if environment['denormals_flushed'] else 'computed with'
    return (
        f'{environment["hardware"]}, {environment["threads"]} threads, denormal numbers {denormals}'
    )


def cpu_name() -> str:
    """Name of this machine's processor."""
    cpuinfo = Path('/proc/cpuinfo')
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith('model name'):
            return line.split(':')[1].strip()
    return platform.processor()


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


def write_json(path: str | Path, rows: Sequence[dict] | dict) -> None:
    """Write rows, or one object, to a JSON file, whole or not at all; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path) as partial:
        partial.write_text(json.dumps(rows, indent=2) + '\n')
