"""Train a detector: MMDetection's own ``tools/train.py``, whose runner checks the config first.

It takes the same arguments (``-h``) and is started in the same ways: by ``mim train mmsmca``, by
``torchrun`` (with ``--launcher pytorch``) or by ``python``. It adds one argument,
``--resume-schedule``: which settings to use when resuming, ``config`` or ``checkpoint``, if they
differ. ``--cfg-options runner_type=Runner`` starts without checks.
"""

import sys

from mmsmca.launch import run_script

if __name__ == '__main__':
    sys.exit(run_script('train'))
