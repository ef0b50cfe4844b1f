"""What ``CompileHook`` gives, and how long compiling takes."""

import statistics
from types import SimpleNamespace

import torch

from mmsmca.engine.hooks.compile_hook import CompileHook

from . import benchmarks
from .detector_cost import MODES, Case, Setting


def measure(name: str, setting: Setting, rounds: int, backend: str) -> list[dict]:
    """Time a detector as it is and compiled, in turns.

    Args:
        name: Path of the config, or ``package::path``.
        setting: What it is measured on.
        rounds: Timings of each.
        backend: Backend of ``torch.compile``.

    Returns:
        A row a mode, training step and inference: the ``outcome``, both times, their ratio, and the
        seconds of the compiled detector's first call.
    """
    rows = []
    for mode, title in MODES.items():
        row: dict = dict(config=name, mode=title, dtype=setting.dtype, backend=backend)
        rows.append(row)
        with benchmarks.outcome_in(row):
            row.update(_measure(name, mode, setting, rounds, backend))
    return rows


def _measure(name: str, mode: str, setting: Setting, rounds: int, backend: str) -> dict[str, float]:
    """Times of one mode."""
    torch._dynamo.reset()  # Nothing is compiled yet, whatever was measured before.
    eager, compiled = Case(name, setting), Case(name, setting)
    CompileHook(backend=backend).before_run(SimpleNamespace(model=compiled.model))
    start = benchmarks.timer()
    getattr(compiled, mode)()
    first = benchmarks.timer() - start
    times = benchmarks.interleaved_times(
        {'eager': getattr(eager, mode), 'compiled': getattr(compiled, mode)}, rounds
    )
    return dict(
        eager_ms=1e3 * statistics.median(times['eager']),
        compiled_ms=1e3 * statistics.median(times['compiled']),
        time_vs_eager=benchmarks.paired_ratio(times['compiled'], times['eager']),
        first_call_s=first,
    )
