"""What holds for all tests."""

import os
from pathlib import Path

import pytest
from runs import CONFIG, write_data
from utils import ROOT

# Processes that tests start are not to format configs either.
folders = [str(ROOT / 'tests/quick'), *filter(None, [os.environ.get('PYTHONPATH')])]
os.environ['PYTHONPATH'] = os.pathsep.join(folders)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A working directory with ``config.py`` and its data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    Path('config.py').write_text(CONFIG)
    write_data(tmp_path / 'data/shapes128')
    return tmp_path
