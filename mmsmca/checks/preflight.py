"""Checks of a config before the first iteration.

Mistakes that would otherwise end a run with a traceback minutes later (a wrong path, categories of
another data set, a checkpoint of another model) end it at once with one line that names the key or
file and the remedy.

Images are not opened before the run, except for those of the trial: that would take many minutes
for COCO's 118,000. An image that cannot be decoded (with OpenCV 4.12, any truncated JPEG or PNG)
ends the run when it is loaded, with an error that names it: see :mod:`.load_image`. A JPEG damaged
in the middle decodes to wrong pixels without any error.
"""

import copy
from collections.abc import Sequence

from mmdet.registry import MODELS
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.registry import DefaultScope

from mmsmca.errors import ConfigError

from .checkpoint import check_checkpoint, check_pretrained
from .data import check_files, find_data
from .describe import described
from .keys import check_custom_keys, check_keys
from .trial import trial

# Phases whose data loaders and evaluators each script uses.
PHASES = {'train': ('train', 'val'), 'test': ('test',)}
# Config keys that each phase requires.
SECTIONS = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}


def check_run(cfg: Config, script: str) -> None:
    """Check what a run needs, and try it: see :func:`.trial.trial`.

    A run that resumes is not tried, since it has already trained.

    Args:
        cfg: The config as it will run. ``cfg.load_from`` is the checkpoint, if any, and
            ``cfg.resume`` says whether training continues from it.
        script: "train" or "test".

    Raises:
        ConfigError: If keys of the config, or config and checkpoint, do not fit together.
        DataError: If annotations or images are missing or cannot be used.
    """
    _check(cfg, PHASES[script], None if cfg.get('resume') else script)


def check_config(cfg: Config, phases: Sequence[str]) -> None:
    """Check what a run needs before it starts: data, categories and checkpoint.

    Not checked are data sets that do not read their annotations as ``CocoDataset`` does, data
    behind ``backend_args`` or a URL, and checkpoints at a URL. Nothing is written.

    Args:
        cfg: As for :func:`check_run`.
        phases: Which of "train", "val" and "test" use their data.

    Raises:
        ConfigError: As for :func:`check_run`.
        DataError: As for :func:`check_run`.
    """
    _check(cfg, phases, None)


def _check(cfg: Config, phases: Sequence[str], tried: str | None) -> None:
    _check_sections(cfg, phases)
    check_keys(cfg)
    datasets, evaluators = find_data(cfg, phases)
    if 'train' in phases:
        check_pretrained(cfg.model)
    check_files(datasets, evaluators, cfg.model)
    model = trial(cfg, tried) if tried else _build_model(cfg)
    check_custom_keys(cfg, model)
    fine_tuning = 'train' in phases and not cfg.get('resume')
    check_checkpoint(cfg, model, datasets, fine_tuning)


def _check_sections(cfg: Config, phases: Sequence[str]) -> None:
    if 'model' not in cfg:
        raise ConfigError(
            "the config has no key 'model'. Specify a complete config; those in _base_ folders "
            'are only parts of others.'
        )
    for phase in phases:
        lacking = [name for name in SECTIONS[phase] if cfg.get(name) is None]
        # A run without validation is fine, one with an incomplete validation is not.
        if lacking and (phase != 'val' or len(lacking) < len(SECTIONS[phase])):
            raise ConfigError(
                f'the config has no {" and no ".join(lacking)}, without which it cannot {phase}. '
                'Set it, or inherit (_base_) from a config that has it.'
            )


def _build_model(cfg: Config) -> BaseModel:
    """Build the model, which reveals most wrong values in its config."""
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet'))
    try:
        with scope:
            # Some models modify their config.
            return MODELS.build(copy.deepcopy(cfg.model))
    except Exception as error:
        raise ConfigError(f'model: {described(error, cfg)}. Correct the model.') from error
