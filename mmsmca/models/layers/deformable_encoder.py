"""Deformable DETR's encoder for SMCA's decoder."""

import torch
from mmdet.models.layers import DeformableDetrTransformerEncoder
from mmdet.registry import MODELS
from torch import Tensor

from .encoder import LevelEncoder
from .memory import Memory, padding_maps
from .precision import at_least_float32
from .values import check_count


@MODELS.register_module()
class SMCADeformableEncoder(LevelEncoder, DeformableDetrTransformerEncoder):
    """MMDetection's Deformable DETR encoder with the interface of SMCA's encoders.

    Configuration keys, weights and result are those of ``DeformableDetrTransformerEncoder``.

    Args:
        num_layers: Number of layers.
        layer_cfg: Arguments of every ``DeformableDetrTransformerEncoderLayer``.
        num_levels: Number of levels, of the detector's ``strides``.
        kwargs: Other arguments of ``DeformableDetrTransformerEncoder``.

    Raises:
        ValueError: If there is no layer.
    """

    def __init__(self, num_layers: int, layer_cfg: dict, num_levels: int, **kwargs) -> None:
        check_count('encoder.num_layers', num_layers)
        attention = dict(layer_cfg['self_attn_cfg'], num_levels=num_levels)
        super().__init__(num_layers, dict(layer_cfg, self_attn_cfg=attention), **kwargs)

    def forward(self, memory: Memory) -> Memory:
        """Encode the tokens of all levels; see :meth:`.encoder.SMCAEncoder.forward`."""
        spatial_shapes = torch.tensor(memory.shapes, device=memory.tokens.device)
        counts = spatial_shapes.prod(dim=1)
        tokens = super().forward(
            query=memory.tokens,
            query_pos=memory.pos,
            key_padding_mask=memory.padding,
            spatial_shapes=spatial_shapes,
            level_start_index=counts.cumsum(0) - counts,
            valid_ratios=_valid_ratios(memory),
        )
        return memory.encoded(tokens)


def _valid_ratios(memory: Memory) -> Tensor:
    """Fraction of every level that is not padding, along x and y, (B, L, 2)."""
    # Half precision would misplace the sampling points by tenths of a cell.
    ones = at_least_float32(memory.tokens.new_ones(len(memory.tokens), 2))
    ratios = []
    for (height, width), padding in zip(
        memory.shapes, padding_maps(memory.padding, memory.shapes), strict=True
    ):
        if padding is None:
            ratios.append(ones)
            continue
        content = ~padding[:, 0]
        cells = torch.stack([content.any(dim).sum(dim=1) for dim in (1, 2)], dim=-1)
        # At least one cell: reference points are divided by the ratio, even if all is padding.
        ratios.append(cells.clamp(min=1).to(ones) / cells.new_tensor([width, height]))
    return torch.stack(ratios, dim=1)
