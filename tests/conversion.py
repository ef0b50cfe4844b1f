"""Running ``tools/convert_checkpoint.py`` in this process."""

import io
import runpy
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import pytest
import torch
from utils import ROOT

TOOL = ROOT / 'tools' / 'convert_checkpoint.py'


def convert(*args):
    """Run the tool in this process: importing takes longer than converting."""
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, 'argv', ['convert_checkpoint.py', *map(str, args)])
        with redirect_stdout(out), redirect_stderr(err), pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOL), run_name='__main__')
    return SimpleNamespace(returncode=stop.value.code, stdout=out.getvalue(), stderr=err.getvalue())


def assert_equal_to_the_bit(actual, expected):
    assert list(actual) == list(expected)
    for name, tensor in expected.items():
        assert actual[name].dtype == tensor.dtype, name
        assert torch.equal(actual[name], tensor), name
