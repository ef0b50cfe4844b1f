"""Evaluate a detector: MMDetection's own ``tools/test.py``, whose runner checks the config first.

It takes the same arguments (``-h``) and is started in the same ways: by ``mim test mmsmca``, by
``torchrun`` (with ``--launcher pytorch``) or by ``python``. ``--cfg-options runner_type=Runner``
starts without checks.
"""

import sys

from mmsmca.launch import run_script

if __name__ == '__main__':
    sys.exit(run_script('test'))
