"""Times in turns, their ratios, and what is said about where they were measured."""

import json
import os
import time

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


def test_environment(monkeypatch):
    found = timing.environment('cpu')
    assert {'date', 'hardware', 'threads', 'mmdet', 'mmsmca', 'CUDA available'} <= found.keys()
    json.dumps(found)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda: 'GPU')
    assert timing.environment('cuda')['hardware'] == 'GPU'
