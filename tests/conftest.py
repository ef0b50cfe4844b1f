"""What holds for all tests."""

import os

from utils import ROOT

# Processes that tests start are not to format configs either.
folders = [str(ROOT / 'tests/quick'), *filter(None, [os.environ.get('PYTHONPATH')])]
os.environ['PYTHONPATH'] = os.pathsep.join(folders)
