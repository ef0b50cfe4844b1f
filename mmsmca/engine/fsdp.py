"""Gradient clipping for FSDP with MMEngine's ``FlexibleRunner``."""

from collections.abc import Iterator
from contextlib import contextmanager

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch.distributed.fsdp import FullyShardedDataParallel


@OPTIM_WRAPPERS.register_module()
class FSDPOptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper``, clipping by the global norm of the gradient.

    Under ``FSDPStrategy``, a process holds a shard of every gradient, or with ``NO_SHARD`` and
    ``HYBRID_SHARD`` the same shard as others. ``OptimWrapper`` would clip each shard by its own
    norm, so processes would take steps of different lengths. FSDP computes the global norm.

    Args:
        clip_grad: ``max_norm``, and optionally ``norm_type`` (2). Defaults to None: no clipping.
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
        """Run the forward pass and the losses of ``model``, and keep it for gradient clipping."""
        self.model = model
        with super().optim_context(model):
            yield

    def _clip_grad(self) -> None:
        norm = self.model.clip_grad_norm_(**self.clip_grad_kwargs)
        self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))
