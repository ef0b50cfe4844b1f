"""Several processes and mixed precision on a CPU, which MMEngine supports only on accelerators.

In MMEngine, ``--launcher pytorch`` calls ``torch.cuda.set_device`` and assigns a GPU to
``DistributedDataParallel``, and ``--amp`` refuses to run. Our tools support both on a CPU if
MMEngine finds no accelerator: processes communicate through gloo, mixed precision is bfloat16.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from mmdet.registry import OPTIM_WRAPPERS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from mmengine.runner.amp import autocast
from torch import distributed, nn

from mmsmca.errors import UserError


class LauncherError(UserError):
    """A launcher that needs an accelerator; the message names the remedy."""


class BFloat16OptimWrapper(OptimWrapper):
    """MMEngine's ``AmpOptimWrapper`` for machines without an accelerator.

    bfloat16 has the range of float32, so gradients do not underflow and the loss is not scaled.

    Args:
        dtype: Precision of the matrix products; only ``bfloat16``, the default.
        loss_scale: Ignored; accepted for configs of ``AmpOptimWrapper``.
        kwargs: Arguments of ``OptimWrapper``.

    Raises:
        ValueError: If ``dtype`` is anything else.
    """

    def __init__(
        self,
        dtype: str | None = None,
        loss_scale: str | float | dict = 'dynamic',
        **kwargs,
    ) -> None:
        if dtype not in (None, 'bfloat16', torch.bfloat16):
            raise ValueError(
                f'optim_wrapper.dtype={dtype!r} needs an accelerator; set bfloat16 on a CPU'
            )
        super().__init__(**kwargs)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Run the forward pass and the losses of ``model`` under autocast."""
        with super().optim_context(model), autocast(dtype=torch.bfloat16):
            yield


def support_mixed_precision() -> None:
    """Let ``AmpOptimWrapper`` run without an accelerator; if there is one, do nothing."""
    if get_device() == 'cpu':
        OPTIM_WRAPPERS.register_module(
            name='AmpOptimWrapper', module=BFloat16OptimWrapper, force=True
        )


def support_processes(cfg: Config, launcher: str) -> None:
    """Let a runner run in several processes without an accelerator just as with one.

    This process joins the process group, and the config tells the model wrapper that there is no
    GPU. If there is an accelerator or no launcher, this does nothing.

    Args:
        cfg: The config as it will run, changed in place.
        launcher: ``none``, or the launcher that started the processes.

    Raises:
        LauncherError: If there is no accelerator and the launcher is not ``none`` or ``pytorch``.
    """
    if get_device() != 'cpu' or launcher == 'none':
        return
    if launcher != 'pytorch':
        raise LauncherError(
            f'--launcher {launcher} needs an accelerator, and there is none. On CPUs start '
            'with torchrun (or mim) and --launcher pytorch.'
        )
    timeout = cfg.get('env_cfg', {}).get('dist_cfg', {}).get('timeout', 1800)
    distributed.init_process_group('gloo', timeout=timedelta(seconds=timeout))
    # What MMEngine's runner passes if there is no model_wrapper_cfg.
    default = dict(
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    wrapper = cfg.get('model_wrapper_cfg') or default
    cfg.merge_from_dict({'model_wrapper_cfg': dict(wrapper, device_ids=None)})
