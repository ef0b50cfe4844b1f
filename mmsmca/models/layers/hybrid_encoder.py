"""Hybrid encoder: attention on the coarsest level, convolutions between the levels."""

from collections.abc import Sequence
from itertools import pairwise

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from .conv_encoder import blank, unflatten_levels
from .encoder import Memory, SMCAEncoderLayer, check_num_levels, flatten_levels


class ConvLayer(BaseModule):
    """Convolution, LayerNorm over the channels of every cell, SiLU.

    The norm is of a cell by itself: neither other images nor padding change what a cell gets.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Side of the kernel, odd.
        stride: Stride. Defaults to 1.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(
            in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False
        )
        self.norm = nn.LayerNorm(out_channels)
        self.act = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        cells = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.act(cells).permute(0, 3, 1, 2)


class FusionBlock(BaseModule):
    def __init__(self, embed_dims: int, num_convs: int) -> None:
        super().__init__()
        self.reduce = ConvLayer(2 * embed_dims, embed_dims, 1)
        self.shortcut = ConvLayer(2 * embed_dims, embed_dims, 1)
        self.convs = ModuleList(ConvLayer(embed_dims, embed_dims, 3) for _ in range(num_convs))

    def forward(self, x: Tensor, other: Tensor, mask: Tensor | None) -> Tensor:
        both = torch.cat((x, other), dim=1)
        out = self.reduce(both)
        for conv in self.convs:
            out = out + conv(blank(out, mask))
        return out + self.shortcut(both)


@MODELS.register_module()
class SMCAHybridEncoder(BaseModule):
    def __init__(
        self,
        num_levels: int,
        layer_cfg: dict,
        num_layers: int = 1,
        num_convs: int = 3,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.num_levels = num_levels
        self.layers = ModuleList(SMCAEncoderLayer(**layer_cfg) for _ in range(num_layers))
        self.embed_dims = channels = self.layers[0].embed_dims
        self.lateral = ModuleList(ConvLayer(channels, channels, 1) for _ in range(num_levels - 1))
        self.top_down = ModuleList(FusionBlock(channels, num_convs) for _ in range(num_levels - 1))
        self.down = ModuleList(ConvLayer(channels, channels, 3, 2) for _ in range(num_levels - 1))
        self.bottom_up = ModuleList(FusionBlock(channels, num_convs) for _ in range(num_levels - 1))

    def output_strides(self, strides: Sequence[int]) -> list[int]:
        check_num_levels('encoder.num_levels', self.num_levels, strides)
        if any(fine * 2 != coarse for fine, coarse in pairwise(strides)):
            raise ValueError(
                f'encoder.type=SMCAHybridEncoder needs levels each of twice the stride of the one '
                f'before, the neck gives {list(strides)}: see backbone.strides and out_indices'
            )
        return list(strides)

    def input_strides(self, strides: Sequence[int]) -> list[int]:
        return list(strides)

    def forward(
        self,
        feat: Tensor,
        feat_pos: Tensor,
        feat_mask: Tensor | None,
        level_shapes: Sequence[tuple[int, int]],
    ) -> Memory:
        height, width = level_shapes[-1]
        cells = height * width
        coarsest = feat[:, -cells:]
        coarsest_mask = None if feat_mask is None else feat_mask[:, -cells:]
        for layer in self.layers:
            coarsest = layer(coarsest, feat_pos[:, -cells:], coarsest_mask, [cells])
        maps = unflatten_levels(torch.cat((feat[:, :-cells], coarsest), dim=1), level_shapes)
        masks = (
            [None] * len(maps)
            if feat_mask is None
            else unflatten_levels(feat_mask.unsqueeze(-1), level_shapes)
        )
        for level in reversed(range(len(maps) - 1)):
            maps[level + 1] = self.lateral[level](maps[level + 1])
            above = _enlarge(maps[level + 1], level_shapes[level])
            maps[level] = self.top_down[level](maps[level], above, masks[level])
        for level in range(len(maps) - 1):
            below = self.down[level](blank(maps[level], masks[level]))
            maps[level + 1] = self.bottom_up[level](maps[level + 1], below, masks[level + 1])
        return Memory(flatten_levels(maps), feat_pos, feat_mask, level_shapes)


def _enlarge(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Give every cell of the finer level what the coarser cell holds that it lies in."""
    height, width = shape
    x = x.repeat_interleave(2, dim=2)[:, :, :height]
    return x.repeat_interleave(2, dim=3)[..., :width]
