"""Utilities shared by the benchmarks: command line, saved rows, memory, processes, pages."""

import argparse
import gc
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch

from mmsmca.engine.timing import environment, in_own_process
from mmsmca.errors import UserError, one_line
from mmsmca.files import write_json

MIB = 2**20
# tf32: float32 whose matrix products and convolutions may round to TF32; in float32 they may not.
DTYPES = ('float32', 'tf32', 'bfloat16', 'float16')
# Outcomes of a measurement; the last two are followed by the error.
MEASURED, NO_MEMORY = 'measured', 'out of memory'
NOT_AVAILABLE, FAILED = 'not available: ', 'failed: '
# Parts of the error messages of PyTorch, CUDA, cuBLAS and cuDNN.
NO_MEMORY_MESSAGES = ('out of memory', "can't allocate memory", 'ALLOC_FAILED')
# Messages are cut off here: those of compilers are pages long.
MESSAGE_LENGTH = 300


def argument_parser(description: str, rounds: int) -> argparse.ArgumentParser:
    """Create the command-line parser that the benchmarks share.

    Args:
        description: What the benchmark measures.
        rounds: Default of ``--rounds``.

    Returns:
        Parser of ``--rounds``, ``--memory-limit`` and ``--json``, whose help shows the defaults.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--rounds', type=int, default=rounds, help='number of timings of each; 0: none'
    )
    parser.add_argument(
        '--memory-limit', type=float, default=12, metavar='GIB',
        help='on a CPU, the memory of what needs more is shown as a dash',
    )  # fmt: skip
    parser.add_argument('--json', help='file for the rows')
    return parser


def add_torch_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of PyTorch benchmarks: ``--dtype``, ``--device`` and ``--threads``."""
    parser.add_argument(
        '--dtype', choices=DTYPES, default='float32', help='half precision uses autocast'
    )
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--threads', type=int, default=2, help='threads on a CPU')


def settings(args: argparse.Namespace, *others: str) -> dict:
    """Settings that are stored with every row: the command line and the environment.

    Args:
        args: Parsed command line of :func:`argument_parser`.
        others: Arguments that are not settings of a row, besides ``--json``.
    """
    given = {key: value for key, value in vars(args).items() if key not in ('json', *others)}
    return {**given, **environment(vars(args).get('device', 'cpu'))}


def kept_rows(path: str | Path | None, settings: dict) -> list[dict]:
    """Read the rows of an earlier call that this one continues.

    Args:
        path: File of the rows; there are none if it is None or does not exist yet.
        settings: Current :func:`settings`. All but the date have to match those of the rows.

    Raises:
        UserError: If the file holds no rows, or rows with other settings. The message names file,
            difference and remedy.
    """
    if path is None or not Path(path).exists():
        return []
    remedy = 'choose another file or delete this one'
    try:
        rows = json.loads(Path(path).read_text())
        found = [dict(row) for row in rows]
    except (ValueError, TypeError) as error:
        raise UserError(f'{path} holds no rows of a benchmark: {remedy}') from error
    # As read from a file: tuples become lists.
    for key, here in json.loads(json.dumps(settings)).items():
        there = next((row.get(key) for row in found if row.get(key) != here), here)
        if key != 'date' and there != here:
            raise UserError(f'{path} was measured with {key} {there}, not {here}: {remedy}')
    return found


@contextmanager
def outcome_in(row: dict, optional: bool = False) -> Iterator[None]:
    """Record the outcome of a measurement in its row, so that an error does not end the others.

    Args:
        row: After an error, its ``outcome`` becomes ``NO_MEMORY`` or ``FAILED`` with the message;
            otherwise ``MEASURED``, unless an earlier part of the measurement has set it.
        optional: Whether an error means ``NOT_AVAILABLE`` instead of ``FAILED``. Defaults to False.
    """
    try:
        yield
        row.setdefault('outcome', MEASURED)
    except Exception as error:
        message = (NOT_AVAILABLE if optional else FAILED) + one_line(error)
        row['outcome'] = NO_MEMORY if out_of_memory(error) else message[:MESSAGE_LENGTH]
        error.__traceback__ = None  # Its frames keep tensors alive.
        give_memory_back()


def failures(rows: Sequence[dict]) -> list[str]:
    """Outcomes of the rows whose measurement failed for reasons other than memory."""
    return [row['outcome'] for row in rows if row['outcome'].startswith(FAILED)]


def out_of_memory(error: Exception) -> bool:
    """Whether an error means a lack of memory, whichever library raised it."""
    return isinstance(error, RuntimeError) and any(
        message in str(error) for message in NO_MEMORY_MESSAGES
    )


def give_memory_back() -> None:
    """Free unreferenced objects, and return unused GPU memory."""
    gc.collect()
    torch.cuda.empty_cache()  # Without effect where there is no GPU.


def in_fresh_process(function: Callable, *args: object) -> Any:
    """Run a module-level function in a fresh process, without earlier allocations.

    In this process, glibc returns freed memory at once, tiny blocks excepted. By default it keeps
    some of it, and the amount differs from run to run.

    Raises:
        BrokenProcessPool: If the process was killed, for example for its memory.
    """
    with patch.dict(os.environ, MALLOC_MMAP_THRESHOLD_='65536'):
        return in_own_process(function, *args)


def peak_memory(call: Callable[[], object], limit_gib: float | None = None) -> float | None:
    """Measure the memory that a call needs on a CPU on top of what this process already has.

    This is the growth of the resident memory that Linux reports. It is meaningful only in a fresh
    process: a later call reuses what an earlier one freed.

    Args:
        call: Function to measure.
        limit_gib: Memory limit of the process, in GiB. Defaults to None: no limit.

    Returns:
        Peak in MiB, or None if the call ran out of memory.
    """
    if limit_gib is not None:
        import resource  # Not available on Windows.

        limit = round(limit_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    Path('/proc/self/clear_refs').write_text('5')  # Resets the peak to what is resident now.
    before = _peak_resident()
    try:
        call()
    except RuntimeError as error:
        if out_of_memory(error):
            return None
        raise
    return (_peak_resident() - before) / MIB


def _peak_resident() -> int:
    """Peak resident memory of this process since the peak was reset, in bytes.

    ``ru_maxrss`` is unsuitable: a process inherits its parent's, and it cannot be reset.
    """
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmHWM:')[1].split()[0]) * 1024


class Section(NamedTuple):
    """A section of a page, with one table.

    Attributes:
        title: Heading.
        text: Description of the measurement, in Markdown.
        columns: Column headings by key of the rows.
    """

    title: str
    text: str
    columns: dict[str, str]


class Part(NamedTuple):
    """A part of a benchmark that is measured and saved as a whole.

    Attributes:
        section: Key of the section that the part belongs to.
        name: Unique name.
        measure: Module-level function that returns rows, each with its ``outcome``.
        arguments: Arguments of that function.
    """

    section: str
    name: str
    measure: Callable[..., list[dict]]
    arguments: tuple


class Worker:
    """A process that measures parts one after the other; a new one replaces it after a failure.

    A GPU error can make a process unusable, but starting one per part takes longer than most.
    """

    def __init__(self) -> None:
        self.pool: futures.ProcessPoolExecutor | None = None

    def measure(self, part: Part, seconds: float | None) -> list[dict]:
        """Measure the rows of a part.

        Raises:
            concurrent.futures.TimeoutError: If this takes longer than ``seconds``.
        """
        if self.pool is None:
            self.pool = futures.ProcessPoolExecutor(1, mp_context=get_context('spawn'))
        try:
            rows = self.pool.submit(part.measure, *part.arguments).result(seconds)
        except futures.TimeoutError:
            raise
        except Exception as error:
            rows = [dict(outcome=(FAILED + one_line(error))[:MESSAGE_LENGTH])]
        if failures(rows):
            self.end()
        return rows

    def end(self) -> None:
        """Kill the process, whatever it is doing."""
        if self.pool is not None:
            for child in active_children():
                child.kill()
            self.pool.shutdown()
            self.pool = None


def measure_parts(
    parts: Sequence[Part],
    path: Path,
    settings: dict,
    minutes: float | None = None,
    wrote: Callable[[list[dict]], object] = lambda rows: None,
) -> list[dict]:
    """Measure the parts that are new or failed before; a lack of memory counts as a result.

    Args:
        parts: Parts to measure, in this order.
        path: JSON file with the rows, written after every part.
        settings: Result of :func:`settings`.
        minutes: Time limit for all parts; one that exceeds it is stopped and left for the next
            call. Defaults to None: no limit.
        wrote: Called with the rows after every part.

    Returns:
        Rows of all measured parts, with the settings, ``section`` and ``part``.

    Raises:
        UserError: If the file exists and has rows with other settings.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    measured: dict[str, list[dict]] = {}
    for row in kept_rows(path, settings):
        measured.setdefault(row['part'], []).append(row)
    worker = Worker()
    try:
        for number, part in enumerate(parts, start=1):
            progress = f'{number}/{len(parts)} {part.name}'
            if part.name in measured and not failures(measured[part.name]):
                print(f'{progress}: measured before')
                continue
            seconds = None if end is None else end - time.monotonic()
            if seconds is not None and seconds <= 0:
                raise futures.TimeoutError
            print(f'{progress}: being measured', flush=True)
            common = dict(settings, section=part.section, part=part.name)
            measured[part.name] = [{**row, **common} for row in worker.measure(part, seconds)]
            rows = [row for rows in measured.values() for row in rows]
            write_json(path, rows)
            wrote(rows)
    except futures.TimeoutError:
        print(f'{progress}: not measured, as the {minutes:g} minutes are over')
    finally:
        worker.end()
    return [row for part in parts for row in measured.get(part.name, [])]


def page(title: str, sections: dict[str, Section], rows: Sequence[dict], settings: dict) -> str:
    """Format rows as a Markdown page.

    Args:
        title: Heading of the page.
        sections: Sections by key, in the order of the page; those without rows are left out.
        rows: Rows of :func:`measure_parts`.
        settings: Settings that all rows share.
    """
    lines = [f'# {title}', '', *(f'- {key}: {value}' for key, value in settings.items())]
    for key, section in sections.items():
        if of_section := [row for row in rows if row['section'] == key]:
            columns = {'part': 'part', **section.columns, 'outcome': 'outcome'}
            table = markdown_table(of_section, columns)
            lines += ['', f'## {section.title}', '', section.text, '', table]
    return '\n'.join(lines) + '\n'


def markdown_table(rows: Sequence[dict], columns: dict[str, str]) -> str:
    """Format rows as a Markdown table.

    Args:
        rows: The rows. Missing values and None become a dash.
        columns: Column headings by key of the rows.
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
