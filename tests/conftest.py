"""What holds for all tests."""

import os

import mmengine.config.config
import pytest
from unformatted.yapf.yapflib.yapf_api import FormatCode
from utils import ROOT


@pytest.fixture(scope='session', autouse=True)
def unformatted_configs():
    """Every run writes its config several times, and formatting takes longer than its steps."""
    folders = [str(ROOT / 'tests/unformatted'), *filter(None, [os.environ.get('PYTHONPATH')])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine.config.config, 'FormatCode', FormatCode)
        patch.setenv('PYTHONPATH', os.pathsep.join(folders))
        yield
