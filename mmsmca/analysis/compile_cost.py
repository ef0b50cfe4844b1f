"""What ``CompileHook`` gives, and how long compiling takes."""

import statistics
from collections.abc import Sequence
from types import SimpleNamespace

import torch

from mmsmca.engine.hooks.compile_hook import PARTS, CompileHook

from . import benchmarks
from .detector_cost import MODES, Case, Setting

# Heads of what is measured, by key of a row.
COLUMNS = {
    'mode': 'mode',
    'parts': 'compiled',
    'eager_ms': 'as it is, ms',
    'compiled_ms': 'compiled, ms',
    'time_vs_eager': 'compiled vs as it is',
    'first_call_s': 'first call, s',
    'eager_mib': 'as it is, MiB',
    'compiled_mib': 'compiled, MiB',
}


def measure(
    name: str,
    setting: Setting,
    rounds: int,
    backend: str,
    modes: Sequence[str] = tuple(MODES),
    parts: Sequence[str] = PARTS,
) -> list[dict]:
    """Time a detector as it is and compiled, in turns.

    Args:
        name: Path of the config, or ``package::path``.
        setting: What it is measured on.
        rounds: Timings of each.
        backend: Backend of ``torch.compile``.
        modes: Which of :data:`.detector_cost.MODES`. Defaults to all.
        parts: Which of :data:`.compile_hook.PARTS` are compiled. Defaults to all.

    Returns:
        A row a mode, training step and inference: the ``outcome``, both times, their ratio with its
        quartiles, the seconds of the compiled detector's first call, and the memory of a later one.
    """
    rows = []
    for mode in modes:
        row: dict = dict(config=name, mode=MODES[mode], dtype=setting.dtype, backend=backend)
        row['parts'] = ', '.join(parts)
        rows.append(row)
        with benchmarks.outcome_in(row):
            row.update(_measure(name, mode, setting, rounds, backend, parts))
    return rows


def _measure(
    name: str, mode: str, setting: Setting, rounds: int, backend: str, parts: Sequence[str]
) -> dict[str, float | list[float] | None]:
    """Times and memory of one mode."""
    eager = Case(name, setting)
    compiled = _compiled(name, setting, backend, parts)
    calls = {'eager': getattr(eager, mode), 'compiled': getattr(compiled, mode)}
    start = benchmarks.timer()
    calls['compiled']()
    first = benchmarks.timer() - start
    times = benchmarks.interleaved_times(calls, rounds)
    memory = {
        which: benchmarks.in_clean_memory(
            _memory, name, mode, setting, backend, of, device=setting.device
        )
        for which, of in (('eager', ()), ('compiled', parts))
    }
    return dict(
        eager_ms=1e3 * statistics.median(times['eager']),
        compiled_ms=1e3 * statistics.median(times['compiled']),
        time_vs_eager=benchmarks.paired_ratio(times['compiled'], times['eager']),
        time_quartiles=benchmarks.paired_spread(times['compiled'], times['eager']),
        first_call_s=first,
        eager_mib=memory['eager'],
        compiled_mib=memory['compiled'],
    )


def _compiled(name: str, setting: Setting, backend: str, parts: Sequence[str]) -> Case:
    """A detector with some of its parts compiled, or none."""
    torch._dynamo.reset()  # Nothing is compiled yet, whatever was measured before.
    case = Case(name, setting)
    CompileHook(parts=parts, backend=backend).before_run(SimpleNamespace(model=case.model))
    return case


def _memory(
    name: str, mode: str, setting: Setting, backend: str, parts: Sequence[str]
) -> float | None:
    """Memory of a later call, in MiB, on top of what stays: compiling itself takes more."""
    call = getattr(_compiled(name, setting, backend, parts), mode)
    for _ in range(2):
        call()
    return benchmarks.peak_memory(call, setting.device)
