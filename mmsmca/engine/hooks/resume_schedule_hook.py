"""One rule for resumed training: the config's settings are compared with the checkpoint's config.

MMEngine restores optimizer and schedules from the checkpoint, whatever the config says. That is
right as long as nothing has changed. Otherwise, only the user knows which of the two is meant.
"""

import ast
import warnings
from typing import Any

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapperDict
from mmengine.runner import IterBasedTrainLoop, Runner

from mmsmca.errors import ConfigError, shorten

# Keys of `optim_wrapper` that no checkpoint stores: the config's are always used.
NOT_STORED = {'type', 'clip_grad', 'accumulative_counts', 'loss_scale', 'dtype'}
# Keys of `train_dataloader` on which the number of iterations per epoch depends.
LENGTH_KEYS = (
    'batch_size', 'num_batch_per_epoch', 'drop_last', 'sampler', 'batch_sampler', 'dataset',
)  # fmt: skip
FROM_WEIGHTS = 'start from its weights: set load_from to the checkpoint, without --resume.'


@HOOKS.register_module()
class ResumeScheduleHook(Hook):
    """Refuse to resume with another schedule, optimizer or epoch length, unless told which counts.

    ``tools/train.py`` adds it to a resumed run. If nothing differs, it changes nothing.

    Args:
        keep: Which settings to use if they differ. True: those of the checkpoint. False: those of
            the config, as if training had used them from the start. Defaults to None: neither.
    """

    def __init__(self, keep: bool | None = None) -> None:
        self.keep = keep

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Compare the settings, and prepare the checkpoint for those to use.

        Args:
            runner: Runner of the training; nothing happens unless it resumes.
            checkpoint: The checkpoint it resumes from, changed in place if the config's are used.

        Raises:
            ConfigError: If settings differ and ``keep`` is None, or training cannot resume with
                the settings that it selects.
        """
        if not runner._resume:
            return
        saved = read_config(checkpoint['meta'].get('cfg'))
        own = read_config(runner.cfg.pretty_text)
        _check_progress(runner, checkpoint, saved)
        _check_groups(runner, checkpoint)
        changes = _changes(runner, checkpoint, saved, own)
        if not changes:
            return
        listed = shorten([f'{key} {change}' for key, change in changes.items()], 8)
        said = f'(checkpoint -> config): {listed}'
        if self.keep is None:
            raise ConfigError(
                f'the config differs from the one that the checkpoint was trained with {said}. '
                '--resume-schedule config continues with the settings of the config, as if '
                'training had used them from the start; --resume-schedule checkpoint continues '
                f'with those of the checkpoint. Or {FROM_WEIGHTS}'
            )
        types = {key.split('.')[0] for key in changes if key.split('.')[-1] in ('type', 'number')}
        if 'optim_wrapper' in types:
            raise ConfigError(
                f'the checkpoint holds the state of another optimizer {said}. Resume with the '
                f'optimizer of the checkpoint, or {FROM_WEIGHTS}'
            )
        if not self.keep:
            _use_config(runner, checkpoint)
        elif 'param_scheduler' in types:
            raise ConfigError(
                f'other schedulers cannot continue those of the checkpoint {said}. Restore '
                'param_scheduler in the config, or use --resume-schedule config.'
            )
        wins = 'checkpoint' if self.keep else 'config'
        runner.logger.warning(f"Resumed with the {wins}'s settings {said}.")


def read_config(text: Any) -> dict[str, Any]:
    """Read a config that MMEngine stored in a checkpoint, without executing it.

    Args:
        text: The stored text.

    Returns:
        Values by top-level key, with tuples as lists. What is neither a literal nor a ``dict(...)``
        is its source code. Empty if ``text`` is not the text of a config.
    """
    try:
        statements = ast.parse(text).body
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        return {}
    return {
        statement.targets[0].id: _value(statement.value)
        for statement in statements
        if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name)
    }


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == 'dict' and not node.args:
        return {str(item.arg): _value(item.value) for item in node.keywords}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {str(key and _value(key)): _value(value) for key, value in pairs}
    if isinstance(node, (ast.List, ast.Tuple)):
        return [_value(item) for item in node.elts]
    try:
        return ast.literal_eval(node)
    except (TypeError, ValueError):
        return ast.unparse(node)


def _check_progress(runner: Runner, checkpoint: dict, saved: dict) -> None:
    """Say it if the length of the training has changed, or nothing is left of it."""
    by_iter = isinstance(runner.train_loop, IterBasedTrainLoop)
    if 'max_iters' in (saved.get('train_cfg') or {}) and not by_iter:
        raise ConfigError(
            'train_cfg: the checkpoint was trained by iteration and does not say in which epoch it '
            f'is. Resume by iteration (by_epoch=False, max_iters=...), or {FROM_WEIGHTS}'
        )
    unit, length = ('iter', runner.max_iters) if by_iter else ('epoch', runner.max_epochs)
    before, done = _info(checkpoint).get(f'max_{unit}s'), checkpoint['meta'][unit]
    if before not in (None, length):
        runner.logger.warning(f'Resumed with train_cfg.max_{unit}s {before} -> {length}.')
    if not by_iter and _info(checkpoint).get('epoch') == done:
        runner.logger.warning(
            f'Resumed from within epoch {done + 1}, which starts again: schedules in iterations '
            'may run ahead.'
        )
    if done >= length:
        runner.logger.warning(
            f'Nothing is left to train: the checkpoint is from {unit} {done}, and '
            f'train_cfg.max_{unit}s is {length}. Raise it to continue training.'
        )


def _check_groups(runner: Runner, checkpoint: dict) -> None:
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        return
    groups = checkpoint['optimizer']['param_groups'], runner.optim_wrapper.optimizer.param_groups
    saved, own = ([len(group['params']) for group in listed] for listed in groups)
    if saved != own:
        raise ConfigError(
            f'the checkpoint was trained with {len(saved)} parameter groups of {sum(saved)} '
            f'parameters, the config has {len(own)} of {sum(own)}. Resume with the optim_wrapper '
            f'and the model that it was trained with, or {FROM_WEIGHTS}'
        )


def _info(checkpoint: dict) -> dict:
    return checkpoint['message_hub'].get('runtime_info', {})


def _changes(runner: Runner, checkpoint: dict, saved: dict, own: dict) -> dict[str, str]:
    """What differs of the settings that a checkpoint stores, or that they are computed from."""
    if own and not saved:
        return {'meta.cfg': 'of the checkpoint, its config, is missing or cannot be read'}
    info, meta = _info(checkpoint), checkpoint['meta']
    changes = _differences(
        _schedule(saved, info.get('max_epochs'), info.get('max_iters')),
        _schedule(own, runner.max_epochs, runner.max_iters),
    )
    data = _differences(_data(saved), _data(own), 'train_dataloader')
    if isinstance(runner.train_loop, IterBasedTrainLoop):
        # The checkpoint does not say how many iterations an epoch had.
        counted = 'convert_to_iter_based' in str(own.get('param_scheduler'))
        return changes | (data if counted else {})
    total, epochs = info.get('max_iters'), info.get('max_epochs')
    if not total or not epochs:
        total, epochs = meta['iter'], meta['epoch']
    before, now = total / max(epochs, 1), len(runner.train_dataloader)
    if before != now:
        changes['iterations per epoch'] = f'{before:g} -> {now}'
        changes |= data or {'data or processes': 'differ, though the config does not'}
    return changes


def _data(cfg: dict) -> dict[str, Any]:
    loader = cfg.get('train_dataloader') or {}
    return {key: loader.get(key) for key in LENGTH_KEYS}


def _schedule(cfg: dict, max_epochs: int | None, max_iters: int | None) -> dict[str, Any]:
    optimizer = cfg.get('optim_wrapper') or {}
    schedulers = cfg.get('param_scheduler') or []
    if isinstance(schedulers, dict) and 'type' in schedulers:
        schedulers = [schedulers]
    if isinstance(schedulers, list):  # A dict with several optimizers. MMEngine's default `end`:
        schedulers = [
            {'end': max_epochs if x.get('by_epoch', True) else max_iters, **x} for x in schedulers
        ]
    scale = cfg.get('auto_scale_lr') or {}
    return dict(
        optim_wrapper={key: x for key, x in optimizer.items() if key not in NOT_STORED},
        param_scheduler=schedulers,
        auto_scale_lr=scale if scale.get('enable') else None,
    )


def _differences(there: Any, here: Any, key: str = '') -> dict[str, str]:
    """Describe by key where two values differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        pairs = {name: (there.get(name), here.get(name)) for name in {**there, **here}}
    elif _is_listing(there) and _is_listing(here):
        if len(there) != len(here):
            return {f'{key}.number': f'{len(there)} -> {len(here)}'}
        pairs = dict(enumerate(zip(there, here, strict=True)))
    else:
        return {} if there == here else {key: f'{there} -> {here}'}
    found: dict[str, str] = {}
    for name, (before, now) in pairs.items():
        found |= _differences(before, now, f'{key}.{name}'.lstrip('.'))
    return found


def _is_listing(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _use_config(runner: Runner, checkpoint: dict) -> None:
    """Put into the checkpoint what it would hold if training had used the config's settings."""
    if isinstance(runner.optim_wrapper, OptimWrapperDict):
        raise ConfigError(
            'the settings of several optimizers cannot be taken from the config: use '
            f'--resume-schedule checkpoint, or {FROM_WEIGHTS}'
        )
    schedulers = runner.param_schedulers or []
    waiting = [type(x).__name__ for x in schedulers if getattr(x, 'need_val_args', False)]
    if waiting:
        raise ConfigError(
            f'{waiting[0]} depends on all evaluations so far, which the checkpoint does not hold, '
            "so the config's schedule cannot be continued. Use --resume-schedule checkpoint, or "
            f'{FROM_WEIGHTS}'
        )
    meta, per_epoch = checkpoint['meta'], 0
    if not isinstance(runner.train_loop, IterBasedTrainLoop):
        per_epoch = len(runner.train_dataloader)
        meta['iter'] = meta['epoch'] * per_epoch
    with warnings.catch_warnings():
        # Schedulers expect a step of the optimizer before their own.
        warnings.simplefilter('ignore')
        try:
            for iteration in range(1, meta['iter'] + 1):
                for scheduler in schedulers:
                    if not scheduler.by_epoch:
                        scheduler.step()
                for scheduler in schedulers if per_epoch and iteration % per_epoch == 0 else ():
                    if scheduler.by_epoch:
                        scheduler.step()
        except ValueError as error:  # OneCycleLR has a last step.
            raise ConfigError(
                f'param_scheduler ends before iteration {meta["iter"]}, where the checkpoint is: '
                f'{error}. Make it longer.'
            ) from error
    stored = checkpoint['optimizer']
    own = runner.optim_wrapper.optimizer.param_groups
    for group, mine in zip(stored['param_groups'], own, strict=True):
        group.update({key: value for key, value in mine.items() if key != 'params'})
    # MMEngine logs these as the base rates; None with a single group.
    if base := runner.optim_wrapper.base_param_settings:
        stored['base_param_settings'] = base
    checkpoint['param_schedulers'] = [scheduler.state_dict() for scheduler in schedulers]
