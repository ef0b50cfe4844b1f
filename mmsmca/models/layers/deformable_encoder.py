"""Deformable DETR's encoder under SMCA's decoder."""

from collections.abc import Sequence

import torch
from mmdet.models.layers import DeformableDetrTransformerEncoder
from mmdet.registry import MODELS
from torch import Tensor

from .encoder import Memory, check_num_levels
from .values import check_count


@MODELS.register_module()
class SMCADeformableEncoder(DeformableDetrTransformerEncoder):
    """MMDetection's encoder of Deformable DETR, called as SMCA's encoders are.

    Configuration keys, weights and result are those of ``DeformableDetrTransformerEncoder``; the
    number of levels is ``layer_cfg.self_attn_cfg.num_levels``.

    Raises:
        ValueError: If there is no layer.
    """

    def __init__(self, num_layers: int, layer_cfg: dict, **kwargs) -> None:
        check_count('encoder.num_layers', num_layers)
        super().__init__(num_layers, layer_cfg, **kwargs)

    def output_strides(self, strides: Sequence[int]) -> list[int]:
        """Strides of the encoded levels, given those of the neck's maps: the same.

        Raises:
            ValueError: If there are not ``layer_cfg.self_attn_cfg.num_levels`` of them.
        """
        key = 'encoder.layer_cfg.self_attn_cfg.num_levels'
        check_num_levels(key, self.layers[0].self_attn.num_levels, strides)
        return list(strides)

    def input_strides(self, strides: Sequence[int]) -> list[int]:
        """Strides of the neck's maps, given those of the encoded levels: the same."""
        return list(strides)

    def forward(
        self,
        feat: Tensor,
        feat_pos: Tensor,
        feat_mask: Tensor | None,
        level_shapes: Sequence[tuple[int, int]],
    ) -> Memory:
        """Encode the cells of all levels.

        Arguments and result as in :meth:`.encoder.SMCAEncoder.forward`.
        """
        spatial_shapes = torch.tensor(level_shapes, device=feat.device)
        sizes = spatial_shapes.prod(dim=1)
        memory = super().forward(
            query=feat,
            query_pos=feat_pos,
            key_padding_mask=feat_mask,
            spatial_shapes=spatial_shapes,
            level_start_index=sizes.cumsum(0) - sizes,
            valid_ratios=_valid_ratios(feat, feat_mask, level_shapes),
        )
        return Memory(memory, feat_pos, feat_mask, level_shapes)


def _valid_ratios(
    feat: Tensor, mask: Tensor | None, level_shapes: Sequence[tuple[int, int]]
) -> Tensor:
    """Fraction of every level that is content, along x and y: (B, L, 2)."""
    # Half precision would misplace the sampling points by tenths of a cell.
    dtype = torch.promote_types(feat.dtype, torch.float32)
    if mask is None:
        return feat.new_ones(len(feat), len(level_shapes), 2, dtype=dtype)
    ratios = []
    levels = mask.split([height * width for height, width in level_shapes], dim=1)
    for level, (height, width) in zip(levels, level_shapes, strict=True):
        content = ~level.unflatten(1, (height, width))
        cells = torch.stack([content.any(dim).sum(dim=1) for dim in (1, 2)], dim=-1)
        # Reference points are divided by the ratio, even on a level that is all padding.
        ratios.append(cells.clamp(min=1).to(dtype) / cells.new_tensor([width, height]))
    return torch.stack(ratios, dim=1)
