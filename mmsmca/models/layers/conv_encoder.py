"""Convolutional bidirectional encoder of the authors' later release."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks.transformer import FFN
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from .encoder import LevelEncoder
from .memory import Memory, flatten_levels
from .precision import at_least_float32
from .values import check_count


class BidirectionalLayer(BaseModule):
    """Encoder layer that mixes each level with itself and both neighbours by convolutions.

    With level maps x_j, position encodings e_j, depthwise 5 x 5 convolutions DW, one per level and
    direction, and 1 x 1 convolutions P that the levels share::

        a_j = DW_j(P1(x_j + e_j))
        m_j = a_j + DW_j^down(a_{j-1}), of stride 2, + resize(DW_j^up(a_{j+1}))
        y_j = LayerNorm(x_j + P2(m_j))
        out_j = LayerNorm(y_j + FFN(y_j))

    Args:
        embed_dims: Channels C.
        num_levels: Number of levels, each with twice the stride of the one before.
        ffn_cfg: Arguments of ``mmcv.cnn.bricks.transformer.FFN``.
        dropout: Dropout probability of the mixed maps.
    """

    def __init__(self, embed_dims: int, num_levels: int, ffn_cfg: dict, dropout: float) -> None:
        super().__init__()

        def depthwise(count: int, stride: int = 1) -> ModuleList:
            return ModuleList(
                nn.Conv2d(embed_dims, embed_dims, 5, stride, padding=2, groups=embed_dims)
                for _ in range(count)
            )

        self.project_in = nn.Conv2d(embed_dims, embed_dims, 1)
        self.same = depthwise(num_levels)
        self.down = depthwise(num_levels - 1, stride=2)
        self.up = depthwise(num_levels - 1)
        self.project_out = nn.Conv2d(embed_dims, embed_dims, 1)
        self.dropout = nn.Dropout(dropout)
        self.ffn = FFN(**ffn_cfg)
        self.norms = ModuleList(nn.LayerNorm(embed_dims) for _ in range(2))

    def forward(
        self, maps: Sequence[Tensor], pos: Sequence[Tensor], padding: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """Encode the level maps.

        Args:
            maps: Level maps, (B, C, H_j, W_j) each.
            pos: Their position encodings.
            padding: True where a cell is padding, (B, 1, H_j, W_j) or None each. Padding is
                zeroed before every depthwise convolution, like the area beyond a map's border, so
                that an image gets the same result as without padding.

        Returns:
            Maps of the same shapes.
        """
        own = [
            blank(conv(blank(self.project_in(x + e), beyond)), beyond)
            for conv, x, e, beyond in zip(self.same, maps, pos, padding, strict=True)
        ]
        mixed = list(own)
        for level, (down, up) in enumerate(zip(self.down, self.up, strict=True)):
            mixed[level + 1] = mixed[level + 1] + down(own[level])
            above = _resize(up(own[level + 1]), own[level].shape[-2:], padding[level : level + 2])
            mixed[level] = mixed[level] + above
        return [self._mix(x, m) for x, m in zip(maps, mixed, strict=True)]

    def _mix(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Apply residual, norms and FFN to every cell."""
        tokens = (x + self.dropout(self.project_out(mixed))).permute(0, 2, 3, 1)
        return self.norms[1](self.ffn(self.norms[0](tokens))).permute(0, 3, 1, 2)


def blank(x: Tensor, padding: Tensor | None) -> Tensor:
    """Zero the padding, (B, 1, H, W) or None, of a map, (B, C, H, W).

    So convolutions treat it like the area beyond a map's border.
    """
    return x if padding is None else x.masked_fill(padding, 0.0)


def _resize(x: Tensor, shape: Sequence[int], padding: Sequence[Tensor | None]) -> Tensor:
    """Enlarge a level's map bilinearly to the next finer level, content to content.

    Args:
        x: The coarser map, (B, C, H, W).
        shape: Height and width of the finer map.
        padding: Padding of the finer and of the coarser map.
    """
    fine_padding, coarse_padding = padding
    if fine_padding is None or coarse_padding is None:
        return F.interpolate(x, size=shape, mode='bilinear', align_corners=True)
    # Half precision would shift the samples by tenths of a cell.
    dtype, x = x.dtype, at_least_float32(x)
    grids = []
    for axis, (coarse, fine) in enumerate(zip(x.shape[-2:], shape, strict=True)):
        # Number of content cells along the axis, per image.
        contents = [
            (~beyond).any(dim=3 - axis).sum(dim=(1, 2), dtype=x.dtype)
            for beyond in (coarse_padding, fine_padding)
        ]
        last_coarse, last_fine = [(content - 1).clamp(min=0) for content in contents]
        step = last_coarse / last_fine.clamp(min=1)
        source = torch.arange(fine, dtype=x.dtype, device=x.device) * step[:, None]
        grids.append(2 * source / max(coarse - 1, 1) - 1)
    y, x_axis = grids
    grid = torch.stack(
        (
            x_axis[:, None, :].expand(-1, shape[0], -1),
            y[:, :, None].expand(-1, -1, shape[1]),
        ),
        dim=-1,
    )
    out = F.grid_sample(x, grid, mode='bilinear', padding_mode='border', align_corners=True)
    return out.to(dtype)


@MODELS.register_module()
class SMCAConvEncoder(LevelEncoder):
    """Stack of :class:`BidirectionalLayer` that outputs the finest level at half its resolution.

    Args:
        num_layers: Number of layers.
        layer_cfg: ``ffn_cfg`` and, as in the other encoders, ``self_attn_cfg``, whose ``dropout``
            applies to the mixed maps.
        num_levels: Number of levels, at least 2, each with twice the stride of the one before.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If there is no layer, or ``num_levels`` is less than 2.
    """

    DOUBLING = True

    def __init__(
        self,
        num_layers: int,
        layer_cfg: dict,
        num_levels: int,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_count('encoder.num_layers', num_layers)
        if num_levels < 2:
            raise ValueError(
                f'model.strides must list at least 2 levels for SMCAConvEncoder, not {num_levels}: '
                'its first output level has the shape of the second'
            )
        attention = layer_cfg['self_attn_cfg']
        self.embed_dims = attention['embed_dims']
        self.layers = ModuleList(
            BidirectionalLayer(
                self.embed_dims, num_levels, layer_cfg['ffn_cfg'], attention.get('dropout', 0.0)
            )
            for _ in range(num_layers)
        )
        self.halve = nn.Conv2d(self.embed_dims, self.embed_dims, 3, stride=2, padding=1)

    def output_strides(self, strides: Sequence[int]) -> list[int]:
        """Strides of the encoded levels, given those of the neck's maps: the first is doubled."""
        first, *others = super().output_strides(strides)
        return [first * 2, *others]

    def forward(self, memory: Memory) -> Memory:
        """Encode the tokens of all levels; see :meth:`.encoder.SMCAEncoder.forward`.

        Returns:
            The encoded tokens. The first level takes shape, padding and position encoding of the
            second, which now has the same stride.
        """
        maps, pos, padding = memory.maps()
        for layer in self.layers:
            maps = layer(maps, pos, padding)
        maps[0] = self.halve(blank(maps[0], padding[0]))
        coarser = memory.from_level(1)
        first, beyond = slice(coarser.counts()[0]), coarser.padding
        return Memory(
            flatten_levels(maps),
            torch.cat((coarser.pos[:, first], coarser.pos), dim=1),
            None if beyond is None else torch.cat((beyond[:, first], beyond), dim=1),
            [coarser.shapes[0], *coarser.shapes],
        )
