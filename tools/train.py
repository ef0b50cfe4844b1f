"""Train a detector: mmsmca's checks, then MMDetection's own ``tools/train.py``.

It takes the same arguments (``-h``) and is started in the same ways: by ``mim train mmsmca``, by
``torchrun`` (with ``--launcher pytorch``) or by ``python``. It adds one argument:
``--no-trial-step`` skips the trial of one training step.
"""

import sys

from mmsmca.launch import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('train'))
