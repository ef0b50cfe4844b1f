"""Training and testing with MMEngine's runner, after the checks.

``tools/train.py`` and ``tools/test.py`` accept the options of MMDetection's scripts of the same
names, to the same effect. The runner gets exactly the config that was checked.
"""

import argparse
import copy
import os
from argparse import Namespace
from pathlib import Path

from mmdet.engine.hooks.utils import trigger_visualization_hook
from mmdet.evaluation import DumpDetResults
from mmdet.registry import RUNNERS
from mmdet.utils import setup_cache_size_limit_of_dynamo
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.runner import Runner

from mmsmca.engine import cpu

from .checks.load_image import naming_images
from .checks.preflight import PHASES, check_config, effective_config
from .checks.trial_step import trial_step
from .errors import ConfigError, command


def parser(name: str) -> argparse.ArgumentParser:
    """Build the parser of a script, with the options of MMDetection's script and ours.

    Args:
        name: "train" or "test".

    Returns:
        The parser.
    """
    parser = argparse.ArgumentParser(description=f'{name.capitalize()} a detector')
    add = parser.add_argument
    add('config', help='config file')
    if name == 'test':
        add('checkpoint', help='checkpoint file')
    add('--work-dir', help='folder for logs and results; default: work_dirs/NAME_OF_CONFIG')
    add(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config: key=value, key="[a,b]" or key=a,b for a list, '
        'key="[(a,b),(c,d)]" for nested ones; no spaces',
    )
    add('--launcher', choices=('none', 'pytorch', 'slurm', 'mpi'), default='none')
    add('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    if name == 'train':
        add('--amp', action='store_true', help='train in mixed precision')
        add(
            '--auto-scale-lr',
            action='store_true',
            help='scale the learning rate by the batch size over auto_scale_lr.base_batch_size',
        )
        add(
            '--resume',
            nargs='?',
            const='auto',
            help='resume from a checkpoint; without a path, from the latest in the work directory',
        )
        add(
            '--resume-schedule',
            choices=('config', 'checkpoint'),
            help='which schedule and optimizer settings to use when resuming, if they differ',
        )
        add('--no-trial-step', action='store_true', help='skip the trial training step')
    else:
        add('--out', help='file for the predictions, .pkl')
        add('--show', action='store_true', help='show the predictions')
        add('--show-dir', help='folder, below the work directory, for images of the predictions')
        add('--wait-time', type=float, default=2, help='seconds to show each image with --show')
        add('--tta', action='store_true', help='test-time augmentation')
    return parser


@command
def run_tool(name: str) -> None:
    """Train or test as the command line says, after the checks.

    Args:
        name: "train" or "test".

    Returns:
        The exit code: 0, or 2 after a :class:`.errors.UserError`, which is printed to stderr as one
        line. Other exceptions propagate.
    """
    args = parser(name).parse_args()
    _check_arguments(args)
    # Old launchers pass the rank as an argument.
    if args.launcher == 'pytorch':
        os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    with naming_images():
        cfg = effective_config(args)
        if _first_on_machine(args.launcher):
            check_config(cfg, PHASES[name])
            # A resumed run has already trained.
            if name == 'train' and not args.no_trial_step and not cfg.get('resume'):
                trial_step(cfg)
        cfg.launcher = args.launcher
        cfg.work_dir = args.work_dir or cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
        (_set_up_training if name == 'train' else _set_up_test)(cfg, args)
        cpu.support(cfg, args.launcher)
        setup_cache_size_limit_of_dynamo()
        runner = RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)
        if name == 'train':
            runner.train()
            return
        if args.out is not None:
            runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
        runner.test()


def _set_up_training(cfg: Config, args: Namespace) -> None:
    if args.amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    if args.auto_scale_lr:
        if not cfg.get('auto_scale_lr', {}).get('base_batch_size'):
            raise ConfigError(
                '--auto-scale-lr: the config has no auto_scale_lr.base_batch_size. Set it to the '
                'number of images per step, over all processes, that the learning rate is for.'
            )
        cfg.auto_scale_lr.enable = True
    hooks = cfg.setdefault('default_hooks', ConfigDict())
    if cfg.get('resume'):
        keep = {'checkpoint': True, 'config': False}.get(args.resume_schedule)
        hooks.schedule = dict(type='ResumeScheduleHook', keep=keep)
    elif cfg.get('load_from'):
        hooks.classifier = dict(type='FreshClassifierHook')


def _set_up_test(cfg: Config, args: Namespace) -> None:
    if args.show or args.show_dir:
        if not cfg.get('default_hooks', {}).get('visualization'):
            raise ConfigError(
                '--show and --show-dir: the config has no default_hooks.visualization. Set it to '
                "dict(type='DetVisualizationHook')."
            )
        trigger_visualization_hook(cfg, args)
    if not args.tta:
        return
    model = cfg.setdefault(
        'tta_model',
        ConfigDict(
            type='DetTTAModel',
            tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
        ),
    )
    dataset = cfg.test_dataloader.dataset
    while 'dataset' in dataset:
        dataset = dataset.dataset
    if 'tta_pipeline' not in cfg:
        pack = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')
        flip = [dict(type='RandomFlip', prob=1.0), dict(type='RandomFlip', prob=0.0)]
        packed = dict(type='PackDetInputs', meta_keys=(*pack, 'flip', 'flip_direction'))
        augmented = ConfigDict(type='TestTimeAug', transforms=[flip, [packed]])
        cfg.tta_pipeline = [*copy.deepcopy(dataset.pipeline[:-1]), augmented]
    cfg.model = ConfigDict(**model, module=cfg.model)
    dataset.pipeline = cfg.tta_pipeline


def _first_on_machine(launcher: str) -> bool:
    """Whether this process runs the checks: one per machine does, as each has its own disk."""
    ranks = {'slurm': 'SLURM_LOCALID', 'mpi': 'OMPI_COMM_WORLD_LOCAL_RANK'}
    return int(os.environ.get(ranks.get(launcher, 'LOCAL_RANK'), 0)) == 0


def _check_arguments(args: Namespace) -> None:
    if args.work_dir is not None and os.path.isfile(args.work_dir):
        raise ConfigError(
            f'--work-dir {args.work_dir} is a file. Specify a folder; it is created if needed.'
        )
    out = vars(args).get('out')
    if out is not None and not out.endswith(('.pkl', '.pickle')):
        raise ConfigError(f'--out {out} must end in .pkl or .pickle, the format it is written in.')
