"""Checkpoints that are complete whenever they exist, however the run ends.

MMEngine writes ``epoch_N.pth`` and ``last_checkpoint`` in place, after removing the checkpoint that
exceeds ``max_keep_ckpts`` or the best one that is to be replaced. A run that is killed in between
leaves a truncated file, or with ``max_keep_ckpts=1`` nothing to resume from.
"""

from pathlib import Path

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook
from mmengine.runner import Runner

from mmsmca.errors import ConfigError
from mmsmca.files import atomic_write


@register_backend('AtomicBackend')
class AtomicBackend(LocalBackend):
    """The local disk, with files written whole or not at all, and removed later."""

    def __init__(self) -> None:
        self._outdated: list[str] = []

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write a file beside its destination, and rename it when it is on disk.

        Args:
            obj: Content.
            filepath: Destination, replaced if it exists; parents are created.
        """
        Path(filepath).parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(filepath, sync=True) as partial, open(partial, 'wb') as file:
            file.write(obj)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file at the next :meth:`remove_outdated`.

        Args:
            filepath: File to remove.
        """
        self._outdated.append(str(filepath))

    def remove_outdated(self) -> None:
        """Remove the files that :meth:`remove` was called for."""
        while self._outdated:
            Path(self._outdated.pop()).unlink(missing_ok=True)


@HOOKS.register_module()
class AtomicCheckpointHook(CheckpointHook):
    """``CheckpointHook`` that removes a checkpoint only when its successor is complete.

    After its first checkpoint, a run that is killed at any moment leaves a complete checkpoint, and
    at most one surplus checkpoint and one ``*.partial`` file.

    Args:
        backend_args: None or dict(backend='local'), the local disk. Defaults to None.
        kwargs: Other arguments of ``CheckpointHook``.

    Raises:
        ConfigError: If ``backend_args`` names another backend.
    """

    def __init__(self, backend_args: dict | None = None, **kwargs) -> None:
        if backend_args not in (None, {}, dict(backend='local')):
            raise ConfigError(
                f'default_hooks.checkpoint.backend_args is {backend_args}, but '
                'AtomicCheckpointHook writes to the local disk. Set it to None, or the type to '
                'CheckpointHook.'
            )
        super().__init__(backend_args=dict(backend='AtomicBackend'), **kwargs)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict) -> None:
        """Save as ``CheckpointHook`` does, then name the checkpoint, then remove the outdated."""
        # Two calls in one epoch overwrite the same checkpoint.
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts and is_main_process():
                outdated = self.filename_tmpl.format(self.keep_ckpt_ids[0])
                self.file_backend.remove(Path(self.out_dir, outdated))
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        filename = self.filename_tmpl.format(step)
        self.last_ckpt = str(Path(self.out_dir, filename))
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            filename,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            backend_args=self.backend_args,
            **self.args,
        )
        if is_main_process():
            named = Path(runner.work_dir, 'last_checkpoint')
            self.file_backend.put(self.last_ckpt.encode(), named)
            self.file_backend.remove_outdated()

    def _save_best_checkpoint(self, runner: Runner, metrics: dict) -> None:
        super()._save_best_checkpoint(runner, metrics)
        self.file_backend.remove_outdated()
