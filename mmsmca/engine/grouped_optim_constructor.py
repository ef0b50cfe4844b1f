"""One parameter group for all parameters with the same optimizer settings."""

from mmdet.registry import OPTIM_WRAPPER_CONSTRUCTORS
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class GroupedOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """MMEngine's constructor, but with one parameter group for each distinct set of settings.

    With a ``paramwise_cfg``, MMEngine makes one group per parameter, so PyTorch's fused and foreach
    optimizers make one call per parameter. Merging the groups does not change the trained weights.
    For any detector::

        optim_wrapper = dict(
            constructor='GroupedOptimWrapperConstructor', optimizer=dict(fused=True)
        )

    A run that started without this constructor cannot be resumed with it, as checkpoints store the
    optimizer's state by group.
    """

    def add_params(
        self,
        params: list[dict],
        module: nn.Module,
        prefix: str = '',
        is_dcn_module: int | float | None = None,
    ) -> None:
        """Add a module's parameters to the groups, as MMEngine does, and merge equal groups.

        Args:
            params: Groups, changed in place.
            module: The module.
            prefix: Name of the module in the model. Defaults to '', the model itself.
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
