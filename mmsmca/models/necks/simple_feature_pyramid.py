"""Feature levels from the single map of a plain ViT."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


@MODELS.register_module()
class SimpleFeaturePyramid(BaseModule):
    """Maps of half, equal, twice and four times the stride of a plain ViT's map.

    The simple feature pyramid of ViTDet (arXiv:2203.16527): a transposed convolution or max pooling
    sets a level's stride, a 1 x 1 convolution with a norm its channels, as in MMDetection's
    ``ChannelMapper``.

    Args:
        in_channels: Channels of the ViT's map.
        out_channels: Channels of every level.
        num_outs: Number of levels; the first has half of the map's stride, 8 for patches of 16
            pixels. Defaults to 4.
        norm_cfg: Norm layer. Defaults to ``dict(type='GN', num_groups=32)``.
        init_cfg: MMEngine's initialisation config. Defaults to Xavier's for convolutions.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        num_outs: int = 4,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg or dict(type='Xavier', layer='Conv2d', distribution='uniform'))
        norm_cfg = norm_cfg or dict(type='GN', num_groups=32)
        self.upsample = nn.ConvTranspose2d(in_channels, in_channels, 2, stride=2)
        self.convs = nn.ModuleList(
            ConvModule(in_channels, out_channels, 1, norm_cfg=norm_cfg, act_cfg=None)
            for _ in range(num_outs)
        )

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            maps: The ViT's map alone, (B, C, H, W).

        Returns:
            One map per level, finest first: (B, C', 2 H, 2 W), (B, C', H, W),
            (B, C', ceil(H / 2), ceil(W / 2)), and so on.
        """
        (x,) = maps
        levels = [self.upsample(x), x]
        while len(levels) < len(self.convs):
            levels.append(nn.functional.max_pool2d(levels[-1], 2, ceil_mode=True))
        return tuple(conv(level) for conv, level in zip(self.convs, levels, strict=True))
