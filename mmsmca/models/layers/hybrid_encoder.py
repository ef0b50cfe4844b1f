"""Hybrid encoder: attention on the coarsest level, convolutions between the levels."""

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from .conv_encoder import blank
from .encoder import LevelEncoder, SMCAEncoderLayer
from .memory import Memory, flatten_levels, unflatten_levels
from .values import check_count


class ConvLayer(BaseModule):
    """Convolution, LayerNorm over the channels of every cell, SiLU.

    Each cell is normalised by itself, so neither other images nor padding affect the norm.

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
        tokens = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.act(tokens).permute(0, 3, 1, 2)


class FusionBlock(BaseModule):
    """Fusion of two maps of one size: residual 3 x 3 convolutions beside a 1 x 1 shortcut.

    Args:
        embed_dims: Channels C.
        num_convs: Number of 3 x 3 convolutions.
    """

    def __init__(self, embed_dims: int, num_convs: int) -> None:
        super().__init__()
        self.reduce = ConvLayer(2 * embed_dims, embed_dims, 1)
        self.shortcut = ConvLayer(2 * embed_dims, embed_dims, 1)
        self.convs = ModuleList(ConvLayer(embed_dims, embed_dims, 3) for _ in range(num_convs))

    def forward(self, x: Tensor, other: Tensor, padding: Tensor | None) -> Tensor:
        """Fuse a level's map with the resized map of its neighbour.

        Args:
            x: Map of the level, (B, C, H, W).
            other: Resized map of the neighbour, (B, C, H, W).
            padding: True where a cell is padding, (B, 1, H, W), or None. Padding is zeroed before
                every 3 x 3 convolution, like the area beyond a map's border.

        Returns:
            Map of the level, (B, C, H, W).
        """
        both = torch.cat((x, other), dim=1)
        out = self.reduce(both)
        for conv in self.convs:
            out = out + conv(blank(out, padding))
        return out + self.shortcut(both)


@MODELS.register_module()
class SMCAHybridEncoder(LevelEncoder):
    """Attention on the coarsest level, then fusion of the levels top-down and bottom-up.

    RT-DETR's hybrid encoder (arXiv:2304.08069) with norms over the channels of each cell. Only the
    coarsest level pays the cost of global self-attention.

    Args:
        num_levels: Number of levels, each with twice the stride of the one before.
        layer_cfg: Arguments of every :class:`.encoder.SMCAEncoderLayer`, on the coarsest level.
        num_layers: Number of these layers. Defaults to 1.
        num_convs: Number of 3 x 3 convolutions per fusion. Defaults to 2.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If there is no level or no layer.
    """

    DOUBLING = True

    def __init__(
        self,
        num_levels: int,
        layer_cfg: dict,
        num_layers: int = 1,
        num_convs: int = 2,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_count('encoder.num_levels', num_levels)
        check_count('encoder.num_layers', num_layers)
        check_count('encoder.num_convs', num_convs, least=0)
        self.layers = ModuleList(SMCAEncoderLayer(**layer_cfg) for _ in range(num_layers))
        self.embed_dims = channels = self.layers[0].embed_dims
        steps = range(num_levels - 1)
        self.lateral = ModuleList(ConvLayer(channels, channels, 1) for _ in steps)
        self.top_down = ModuleList(FusionBlock(channels, num_convs) for _ in steps)
        self.down = ModuleList(ConvLayer(channels, channels, 3, stride=2) for _ in steps)
        self.bottom_up = ModuleList(FusionBlock(channels, num_convs) for _ in steps)

    def forward(self, memory: Memory) -> Memory:
        """Encode the tokens of all levels; see :meth:`.encoder.SMCAEncoder.forward`."""
        maps, pos, padding = memory.maps()
        maps[-1] = self._attend(maps[-1], pos[-1], padding[-1])
        for level in reversed(range(len(maps) - 1)):
            maps[level + 1] = self.lateral[level](maps[level + 1])
            above = _enlarge(maps[level + 1], memory.shapes[level])
            maps[level] = self.top_down[level](maps[level], above, padding[level])
        for level in range(len(maps) - 1):
            below = self.down[level](blank(maps[level], padding[level]))
            maps[level + 1] = self.bottom_up[level](maps[level + 1], below, padding[level + 1])
        return memory.encoded(flatten_levels(maps))

    def _attend(self, x: Tensor, pos: Tensor, padding: Tensor | None) -> Tensor:
        height, width = x.shape[-2:]
        tokens, pos = flatten_levels([x]), flatten_levels([pos])
        padding = None if padding is None else padding.flatten(1)
        for layer in self.layers:
            tokens = layer(tokens, pos, padding, [tokens.size(1)])
        return unflatten_levels(tokens, [(height, width)])[0]


def _enlarge(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Give every cell of the finer level the value of the coarser cell that contains it."""
    return F.interpolate(x, size=shape, mode='nearest')
