"""Evaluate a detector: mmsmca's checks, then MMDetection's own ``tools/test.py``.

It takes the same arguments (``-h``) and is started in the same ways: by ``mim test mmsmca``, by
``torchrun`` (with ``--launcher pytorch``) or by ``python``.
"""

import sys

from mmsmca.launch import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('test'))
