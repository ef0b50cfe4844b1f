"""``python -m mmsmca SCRIPT ...``: import mmsmca, then run a script, such as MMDetection's."""

import os
import runpy
import sys

if __name__ == '__main__':
    del sys.argv[0]
    sys.path[0] = os.path.dirname(sys.argv[0])
    runpy.run_path(sys.argv[0], run_name='__main__')
