"""Times in turns, their ratios, and what is said about where they were measured."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmsmca.engine import timing


def test_paired_ratio_is_the_median_over_rounds():
    # The machine was ten times slower in the second round: for both.
    assert timing.paired_ratio([3, 20, 3, 90], [1, 10, 2, 10]) == (3 + 2) / 2


def test_paired_spread_is_the_quartiles_of_the_rounds():
    assert timing.paired_spread([1, 20, 3, 40, 5], [1, 10, 1, 10, 1]) == [2, 4]


def test_calls_are_timed_in_turns():
    order = []

    def call(name: str, seconds: float) -> None:
        order.append(name)
        time.sleep(seconds)

    calls = dict(slow=lambda: call('slow', 0.02), fast=lambda: call('fast', 0.01))
    times = timing.interleaved_times(calls, rounds=3, min_seconds=0)
    assert order[-6:] == ['slow', 'fast'] * 3
    assert [len(times['slow']), len(times['fast'])] == [3, 3]
    assert min(times['slow']) >= 0.02


def test_short_calls_are_repeated(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(timing, 'timer', lambda: clock[0])

    def call() -> None:
        clock[0] += 0.01

    times = timing.interleaved_times(dict(call=call), rounds=2, min_seconds=0.05)
    # Twice to warm up and to see how long it takes, then five times per round.
    assert clock[0] == pytest.approx(0.01 * (1 + 1 + 2 * 5))
    assert times['call'] == pytest.approx([0.01, 0.01])


def test_a_process_of_its_own():
    assert timing.in_own_process(os.getpid) != os.getpid()


def test_environment_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'GPU')
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda: (9, 0))
    properties = SimpleNamespace(total_memory=2**34)
    monkeypatch.setattr(torch.cuda, 'get_device_properties', lambda device: properties)
    monkeypatch.setattr(shutil, 'which', lambda name: None)
    found = timing.environment('cuda')
    assert (found['hardware'], found['gpu_memory_gib']) == ('GPU', 16)
    assert found['compute_capability'] == '9.0'
    assert found['driver'] is None
    assert {'cuda', 'cudnn'} <= found.keys()


def test_driver(tmp_path: Path, monkeypatch):
    tool = tmp_path / 'nvidia-smi'
    tool.write_text('#!/bin/sh\necho 570.1\necho 570.1\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', str(tmp_path), prepend=':')
    assert timing.driver_version() == '570.1'
    tool.write_text('#!/bin/sh\nexit 9\n')
    assert timing.driver_version() is None
