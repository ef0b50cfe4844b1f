"""Fixtures of the benchmarks' tests."""

import runpy
import sys
from collections.abc import Callable

import benchmarks
import pytest
import torch
from utils import ROOT


@pytest.fixture
def one_process(monkeypatch) -> None:
    """Starts no processes and leaves the threads alone: memory means nothing then."""
    monkeypatch.setattr(benchmarks, 'in_fresh_process', lambda function, *args: function(*args))
    monkeypatch.setattr(torch, 'set_num_threads', lambda number: None)


@pytest.fixture
def run_tool(monkeypatch) -> Callable[..., int]:
    """Call a tool of this folder with its arguments; its exit status."""

    def run(name: str, *arguments: object) -> int:
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
        return runpy.run_path(str(ROOT / f'tools/analysis_tools/{name}.py'))['main']()

    return run
