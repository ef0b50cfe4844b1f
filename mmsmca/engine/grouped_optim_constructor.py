"""One parameter group for all parameters that are trained alike."""

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor with as many parameter groups as there are different settings.

    With a ``paramwise_cfg`` MMEngine makes a group of every single parameter, and PyTorch's fused
    and foreach optimizers, which take a group at a time, one call of each. The weights come out the
    same. For any detector::

        optim_wrapper = dict(
            constructor='GroupedOptimWrapperConstructor', optimizer=dict(fused=True)
        )

    A checkpoint that was trained without it cannot be resumed with it: the optimizer's state is
    kept by group.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Add a module's parameters to the groups, as MMEngine does, and unite the groups.

        Args:
            params: Groups, changed in place.
            module: The module.
            prefix: Its name in the model. Defaults to '': it is the model.
            is_dcn_module: Whether it is part of a deformable convolution.
        """
        super().add_params(params, module, prefix, is_dcn_module)
        if prefix:
            return
        groups: dict[tuple, dict] = {}
        for group in params:
            settings = {key: x for key, x in group.items() if key != 'params'}
            united = groups.setdefault(tuple(sorted(settings.items())), dict(settings, params=[]))
            united['params'] += group['params']
        params[:] = groups.values()
