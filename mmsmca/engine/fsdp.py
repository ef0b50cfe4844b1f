"""Gradient clipping for FSDP through MMEngine's ``FlexibleRunner``."""

from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import distributed


@OPTIM_WRAPPERS.register_module()
class FSDPOptimWrapper(OptimWrapper):
    """MMEngine's ``OptimWrapper``, clipping by the norm of the whole gradient.

    Under ``FSDPStrategy`` a process holds a part of every gradient. ``OptimWrapper`` would clip
    each part by its own norm, so that the processes took steps of different lengths.

    Args:
        clip_grad: ``max_norm``, and ``norm_type``, which has to be 2. Defaults to None: no
            clipping.
        kwargs: Other arguments of ``OptimWrapper``.

    Raises:
        ValueError: If ``clip_grad`` asks for anything but the norm of type 2.
    """

    def __init__(self, clip_grad: dict | None = None, **kwargs) -> None:
        if clip_grad is not None and (
            clip_grad.keys() - {'max_norm', 'norm_type'} or clip_grad.get('norm_type', 2) != 2
        ):
            raise ValueError(
                f'optim_wrapper.clip_grad={clip_grad}: FSDPOptimWrapper clips by the norm of type '
                '2; set dict(max_norm=..., norm_type=2)'
            )
        super().__init__(clip_grad=clip_grad, **kwargs)

    def _clip_grad(self) -> None:
        parameters = [p for group in self.optimizer.param_groups for p in group['params']]
        gradients = [p.grad for p in parameters if p.grad is not None]
        squared_norm = sum(gradient.square().sum() for gradient in gradients)
        distributed.all_reduce(squared_norm)
        norm = squared_norm.sqrt()
        # As torch.nn.utils.clip_grad_norm_ does.
        factor = (self.clip_grad_kwargs['max_norm'] / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor)
        self.message_hub.update_scalar(f'train/{self.grad_name}', float(norm))
