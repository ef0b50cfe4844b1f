"""What holds for all tests."""

import os

import quick_configs  # noqa: F401
from utils import ROOT

# Processes that tests start are to be quick too.
folders = [str(ROOT / 'tests/quick'), *filter(None, [os.environ.get('PYTHONPATH')])]
os.environ['PYTHONPATH'] = os.pathsep.join(folders)
