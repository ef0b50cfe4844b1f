import sys
from collections.abc import Callable

import benchmarks
import measure
import pytest
import torch
from measure import interleaved_times

from mmsmca.engine import timing


def call(function: Callable, *args: object) -> object:
    return function(*args)


def once(calls: dict, rounds: int) -> dict[str, list[float]]:
    """A single timing each, without repetitions."""
    return {name: [timing._seconds(call, 1)] * rounds for name, call in calls.items()}


class Here:
    """A worker that is this process."""

    def measure(self, part: benchmarks.Part, seconds: float | None) -> list[dict]:
        return part.measure(*part.arguments)

    def end(self) -> None:
        pass


@pytest.fixture
def one_process(monkeypatch) -> None:
    """Starts no processes, and times everything once: numbers mean nothing then."""
    assert measure.interleaved_times is interleaved_times
    monkeypatch.setattr(measure, 'interleaved_times', once)
    monkeypatch.setattr(measure, 'in_fresh_process', call)
    peak_memory = benchmarks.peak_memory
    # The limit would stay with this process.
    monkeypatch.setattr(measure, 'peak_memory', lambda run, limit_gib=None: peak_memory(run))
    monkeypatch.setattr(benchmarks, 'Worker', Here)
    monkeypatch.setattr(torch, 'set_num_threads', lambda number: None)


@pytest.fixture
def run_tool(monkeypatch) -> Callable[..., int]:
    """Call a tool of this folder with its arguments; its exit status."""
    import runpy

    from utils import ROOT

    def run(name: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
        return runpy.run_path(str(ROOT / f'tools/analysis_tools/{name}.py'))['main']()

    return run
