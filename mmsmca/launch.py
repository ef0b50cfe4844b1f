"""The launch of MMDetection's own scripts, behind the checks.

``tools/train.py`` and ``tools/test.py`` call :func:`run_tool`.
"""

import importlib.util
import os
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import mmdet

from mmsmca.checks.load_image import naming_images
from mmsmca.checks.trial_step import trial_step
from mmsmca.engine import cpu

from .checks.preflight import PHASES, check_config, effective_config
from .errors import ConfigError, command

# Ours; MMDetection's script does not know it.
NO_TRIAL_STEP = '--no-trial-step'


def mmdet_script(name: str) -> ModuleType:
    """Import one of MMDetection's own scripts.

    Args:
        name: "train" or "test".

    Returns:
        The script as a module, with its functions ``parse_args`` and ``main``.

    Raises:
        ConfigError: If the installed MMDetection has no scripts.
    """
    package = Path(mmdet.__file__).parent
    # A wheel carries them in the package; beside it they lie in an editable source checkout.
    for folder in (package / '.mim' / 'tools', package.parent / 'tools'):
        path = folder / f'{name}.py'
        if path.is_file():
            spec = importlib.util.spec_from_file_location(f'mmdet_{name}', path)
            assert spec is not None and spec.loader is not None  # As every .py file has.
            script = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(script)
            return script
    raise ConfigError(
        f'MMDetection in {package} comes without its tools/{name}.py. Install the package '
        '`onedl-mmdetection` or `mmdet` from its wheel.'
    )


@command
def run_tool(name: str) -> None:
    """Run MMDetection's script on ``sys.argv``, after the checks.

    Args:
        name: "train" or "test".

    Returns:
        The exit code: 0, or 2 after a :class:`.errors.UserError`, which is printed to stderr as one
        line. Other exceptions pass.
    """
    with naming_images():
        script = mmdet_script(name)
        is_tried = name == 'train' and NO_TRIAL_STEP not in sys.argv
        sys.argv = [argument for argument in sys.argv if argument != NO_TRIAL_STEP]
        args = script.parse_args()
        _check_arguments(args)
        cfg = effective_config(args)
        if _first_on_machine(args.launcher):
            check_config(cfg, PHASES[name])
            # What is resumed has been trained before.
            if is_tried and not cfg.get('resume'):
                trial_step(cfg)
        if name == 'train':
            # Without a checkpoint to resume from, the script would forget the config's `load_from`.
            args.resume = cfg.load_from if cfg.get('resume') else None
            if cfg.get('load_from') and not cfg.get('resume'):
                hook = {'default_hooks.classifier': dict(type='FreshClassifierHook')}
                args.cfg_options = {**(args.cfg_options or {}), **hook}
        cpu.support(cfg, args)
        # The script would read the arguments again.
        vars(script).update(parse_args=lambda: args)
        script.main()


def _first_on_machine(launcher: str) -> bool:
    """Whether this is the process that checks: one on each machine, as each has its own disk."""
    # With the launchers not named here, MMDetection's `parse_args` has set LOCAL_RANK.
    ranks = {'slurm': 'SLURM_LOCALID', 'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK'}
    return int(os.environ.get(ranks.get(launcher, 'LOCAL_RANK'), 0)) == 0


def _check_arguments(args: Namespace) -> None:
    if args.work_dir is not None and os.path.isfile(args.work_dir):
        raise ConfigError(
            f'--work-dir {args.work_dir} is a file. Name a folder; it is created if need be.'
        )
    out = vars(args).get('out')
    if out is not None and not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(
            f'--out {out} has to end in .pkl or .pickle, the format it is written in.'
        )
