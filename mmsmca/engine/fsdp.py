"""Gradient clipping for FSDP through MMEngine's ``FlexibleRunner``."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch.distributed.fsdp import FullyShardedDataParallel


@OPTIM_WRAPPERS.register_module()
class FSDPOptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper``, clipping by the norm of the whole gradient.

    Under ``FSDPStrategy`` a process holds a part of every gradient, or with ``NO_SHARD`` and
    ``HYBRID_SHARD`` the same part as others. ``OptimWrapper`` would clip each part by its own norm,
    and processes would take steps of different lengths. FSDP knows the norm of the whole.

    Args:
        clip_grad: ``max_norm``, and ``norm_type``, 2 unless given. Defaults to None: no clipping.
        kwargs: Other arguments of ``OptimWrapper``.

    Raises:
        ValueError: If ``clip_grad`` has other keys.
    """

    def __init__(self, clip_grad: dict | None = None, **kwargs) -> None:
        if clip_grad is not None and clip_grad.keys() - {'max_norm', 'norm_type'}:
            raise ValueError(
                f'optim_wrapper.clip_grad={clip_grad}: FSDPOptimWrapper clips by a norm; '
                'set dict(max_norm=..., norm_type=2)'
            )
        super().__init__(clip_grad=clip_grad, **kwargs)

    @contextmanager
    def optim_context(self, model: FullyShardedDataParallel) -> Iterator[None]:
        """Run the forward pass and the losses of ``model``, whose gradients are clipped later."""
        self.model = model
        with super().optim_context(model):
            yield

    def _clip_grad(self) -> None:
        norm = self.model.clip_grad_norm_(**self.clip_grad_kwargs)
        self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))
