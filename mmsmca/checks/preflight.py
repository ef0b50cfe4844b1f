"""Checks of a config before the first iteration.

Mistakes that would otherwise end a run with a traceback minutes later (a wrong path, categories of
another data set, a checkpoint of another model) end it at once with one line that names the key or
file and the remedy. ``tools/check_data.py`` lists all of them.

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

from mmsmca.errors import ConfigError, Found, raise_first

from .checkpoint import check_checkpoint, normalisation_faults, pretrained_faults
from .data import Used, check_files, find_data
from .describe import described
from .keys import custom_key_faults, key_faults
from .trial import trial_faults

# Phases whose data loaders and evaluators each script uses.
PHASES = {'train': ('train', 'val'), 'test': ('test',)}
# Config keys that each phase requires.
SECTIONS = {
    'train': ('train_dataloader', 'train_cfg', 'optim_wrapper'),
    'val': ('val_dataloader', 'val_cfg', 'val_evaluator'),
    'test': ('test_dataloader', 'test_cfg', 'test_evaluator'),
}


def check_run(cfg: Config, script: str) -> None:
    """Check what a run needs, and try it: see :func:`.trial.trial_faults`.

    A run that resumes is not tried, since it has already trained.

    Args:
        cfg: The config as it will run. ``cfg.load_from`` is the checkpoint, if any, and
            ``cfg.resume`` says whether training continues from it.
        script: "train" or "test".

    Raises:
        ConfigError: If keys of the config, or config and checkpoint, do not fit together.
        DataError: If annotations or images are missing or cannot be used.
    """
    raise_first(find_faults(cfg, PHASES[script], None if cfg.get('resume') else script))


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
    raise_first(find_faults(cfg, phases))


def find_faults(cfg: Config, phases: Sequence[str], tried: str | None = None) -> Found[list[Used]]:
    """Find all that :func:`check_config` or, with ``tried``, :func:`check_run` refuses.

    Args:
        cfg: As for :func:`check_run`.
        phases: As for :func:`check_config`.
        tried: The script to try. Defaults to None: the model is only built.

    Yields:
        Errors, of which a run raises the first, and warnings.

    Returns:
        The data sets whose annotations can be read.
    """
    for phase in phases:
        lacking = [name for name in SECTIONS[phase] if cfg.get(name) is None]
        # A run without validation is fine, one with an incomplete validation is not.
        if lacking and (phase != 'val' or len(lacking) < len(SECTIONS[phase])):
            yield ConfigError(
                f'the config has no {" and no ".join(lacking)}, without which it cannot {phase}. '
                'Set it, or inherit (_base_) from a config that has it.'
            )
    if 'model' not in cfg:
        yield ConfigError(
            "the config has no key 'model'. Specify a complete config; those in _base_ folders "
            'are only parts of others.'
        )
        return []
    yield from key_faults(cfg)
    datasets, evaluators = yield from find_data(cfg, phases)
    if 'train' in phases:
        yield from pretrained_faults(cfg.model)
    used = yield from check_files(datasets, evaluators, cfg.model)
    model = yield from trial_faults(cfg, tried) if tried else _build_faults(cfg)
    if model:
        yield from custom_key_faults(cfg, model)
        if 'train' in phases:
            yield from normalisation_faults(cfg.model.get('data_preprocessor') or {}, model)
        fine_tuning = 'train' in phases and not cfg.get('resume')
        try:
            check_checkpoint(cfg, model, datasets, fine_tuning)
        except ConfigError as error:
            yield error
    return used


def _build_faults(cfg: Config) -> Found[BaseModel | None]:
    """Build the model, which reveals most wrong values in its config."""
    scope = DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmdet'))
    try:
        with scope:
            # Some models modify their config.
            return MODELS.build(copy.deepcopy(cfg.model))
    except Exception as error:
        yield ConfigError(f'model: {described(error, cfg)}. Correct the model.')
        return None
