"""Detecting and training on images of changing size takes no more memory the longer it goes on."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow
LEAKS = Path(__file__).with_name('leaks.py')


def growth(*arguments: str, warm_up: int) -> tuple[float, float]:
    """Objects and KiB that a process of its own gains in an iteration after ``warm_up`` ones."""
    done = subprocess.run([sys.executable, LEAKS, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    measured = [json.loads(line) for line in lines if line.startswith('[')]
    first = next(values for values in measured if values[0] == warm_up)
    iterations, objects, mebibytes = (b - a for a, b in zip(first, measured[-1], strict=True))
    return objects / iterations, 1024 * mebibytes / iterations


# What an iteration may gain is less than the decoder's output for its images: 5 and 10 KiB.
@pytest.mark.parametrize(
    ('what', 'warm_up', 'limit'), [('inference', 300, 2.5), ('training', 100, 8.0)]
)
def test_memory_is_flat(what: str, warm_up: int, limit: float):
    objects, kibibytes = growth(what, warm_up=warm_up)
    assert objects < 0.1
    assert kibibytes < limit


def test_a_leak_would_show():
    """One tensor of 5 KiB in every iteration."""
    objects, kibibytes = growth('inference', '--leak', '--iterations', '600', warm_up=300)
    assert objects > 0.9
    assert kibibytes > 4
