"""Train a detector: MMDetection's own ``tools/train.py`` behind the checks of mmsmca.

It takes the same arguments (``-h``) and is started in the same ways: by ``mim train mmsmca``, by
``torchrun`` (with ``--launcher pytorch``) or by ``python``. One argument is its own:
``--no-trial-step`` starts without the trial of one training step.
"""

import sys

from mmsmca.launch import run_tool

if __name__ == '__main__':
    sys.exit(run_tool('train'))
