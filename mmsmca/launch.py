"""MMDetection's scripts with checks in front of MMEngine's runner."""

import argparse
import copy
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import mmdet
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import RUNNERS
from mmengine.runner import Runner, find_latest_checkpoint
from torch import nn

from mmsmca.engine import cpu

from .checks.config import load_config
from .checks.load_image import naming_images
from .checks.preflight import check_run
from .config_scope import config_path
from .errors import ConfigError, UserError, command

WAY_PAST = 'If this is wrong, --cfg-options runner_type=Runner starts without any checks.'
# Hooks of every training, which act when it starts from a checkpoint.
HOOKS = {'schedule': 'ResumeScheduleHook', 'classifier': 'FreshClassifierHook'}


@RUNNERS.register_module()
class CheckedRunner:
    """MMEngine's ``Runner``, built only after the checks of :func:`.check_run`.

    With ``runner_type='CheckedRunner'`` in a config, MMDetection's scripts check it before they
    train or test. In several processes, one per machine checks.

    Args:
        cfg: The config as it will run.
    """

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        cfg.setdefault('default_scope', 'mmdet')

    @classmethod
    def from_cfg(cls, cfg: Config) -> 'CheckedRunner':
        """Take the config, as MMEngine's runners do."""
        return cls(cfg)

    @property
    def test_evaluator(self) -> Evaluator:
        """Evaluator of the test, to which MMDetection's script adds metrics."""
        return self._for_test.test_evaluator

    def train(self) -> nn.Module:
        """Check the config, then train.

        Returns:
            The model.

        Raises:
            UserError: If the run cannot work; the message is one line.
        """
        with naming_images():
            return self._checked('train').train()

    def test(self) -> dict:
        """Check the config, then test.

        Returns:
            The metrics.

        Raises:
            UserError: If the run cannot work; the message is one line.
        """
        with naming_images():
            return self._for_test.test()

    @cached_property
    def _for_test(self) -> Runner:
        with naming_images():
            return self._checked('test')

    def _checked(self, script: str) -> Runner:
        cfg = self.cfg
        if script == 'test':
            cfg.resume = False
        else:
            hooks = cfg.get('default_hooks') or {}
            own = {name: dict(dict(type=HOOKS[name]), **hooks.get(name, {})) for name in HOOKS}
            cfg.default_hooks = dict(hooks, **own)
        cpu.support_mixed_precision()
        launcher = cfg.get('launcher', 'none')
        if _first_on_machine(launcher):
            with _way_past_named():
                check_run(_with_checkpoint(cfg), script)
        cpu.support_processes(cfg, launcher)
        return Runner.from_cfg(cfg)


@command
def run_script(name: str) -> None:
    """Run MMDetection's script of this name with :class:`CheckedRunner` as its ``Runner``.

    Args:
        name: "train" or "test".

    Returns:
        The exit code: 0, or 2 after a :class:`.errors.UserError`, which is printed to stderr as one
        line. Other exceptions propagate.
    """
    script: Any = _script(name)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    if name == 'train':
        parser.add_argument('--resume-schedule', choices=('config', 'checkpoint'))
    own, sys.argv[1:] = parser.parse_known_args()
    args = script.parse_args()
    options = args.cfg_options or {}
    if options.get('runner_type') != 'Runner':
        with _way_past_named():
            cfg = load_config(args)
            _check_arguments(args, cfg)
        if vars(args).get('resume') == 'auto' and _nothing_to_resume(args, cfg):
            args.resume = None  # MMDetection's script would ignore the config's load_from.
    args.config = config_path(args.config)  # The script takes files only.
    if vars(own).get('resume_schedule'):
        options['default_hooks.schedule.keep'] = own.resume_schedule == 'checkpoint'
        args.cfg_options = options
    script.parse_args = lambda: args
    script.Runner = CheckedRunner
    script.main()


@contextmanager
def _way_past_named() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise type(error)(f'{error} {WAY_PAST}') from error


def _script(name: str) -> Any:
    path = Path(mmdet.__file__).parent / f'.mim/tools/{name}.py'
    spec: Any = importlib.util.spec_from_file_location(f'mmdet_{name}', path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def _with_checkpoint(cfg: Config) -> Config:
    """The config with the checkpoint that MMEngine's runner will find if it is to resume."""
    cfg = copy.deepcopy(cfg)
    if cfg.get('resume') and cfg.get('load_from') is None:
        cfg.load_from = find_latest_checkpoint(cfg.work_dir)
        cfg.resume = cfg.load_from is not None
    return cfg


def _first_on_machine(launcher: str) -> bool:
    """Whether this process runs the checks: one per machine does, as each has its own disk."""
    ranks = {'slurm': 'SLURM_LOCALID', 'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK'}
    return int(os.environ.get(ranks.get(launcher, 'LOCAL_RANK'), 0)) == 0


def _nothing_to_resume(args: argparse.Namespace, cfg: Config) -> bool:
    work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    return find_latest_checkpoint(work_dir) is None


def _check_arguments(args: argparse.Namespace, cfg: Config) -> None:
    """Check what MMDetection's script would refuse with a traceback, or only when it is done."""
    if args.work_dir is not None and os.path.isfile(args.work_dir):
        raise ConfigError(
            f'--work-dir {args.work_dir} is a file. Specify a folder; it is created if needed.'
        )
    runner = cfg.get('runner_type', 'Runner')
    if isinstance(runner, str) and RUNNERS.get(runner) is None:
        raise ConfigError(f'runner_type: nothing is called {runner}. Leave it out.')
    given = vars(args)
    if given.get('out') and not given['out'].endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {args.out} must end in .pkl or .pickle, the format it has.')
    if given.get('auto_scale_lr') and not cfg.get('auto_scale_lr', {}).get('base_batch_size'):
        raise ConfigError(
            '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size. Set it to the '
            'number of images per step, over all processes, that the learning rate is for.'
        )
    hooks = cfg.get('default_hooks', {})
    if (given.get('show') or given.get('show_dir')) and not hooks.get('visualization'):
        raise ConfigError(
            '--show and --show-dir: the config has no default_hooks.visualization. Set it to '
            "dict(type='DetVisualizationHook')."
        )
