"""Running ``tools/convert_checkpoint.py``, and comparing what it writes."""

from subprocess import CompletedProcess

import torch
from scripts import run_python
from utils import ROOT

TOOL = ROOT / 'tools' / 'convert_checkpoint.py'


def convert(*args: object) -> CompletedProcess:
    return run_python(TOOL, *args, code=None)


def assert_equal_to_the_bit(actual, expected):
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name
