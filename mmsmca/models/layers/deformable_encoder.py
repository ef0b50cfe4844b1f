"""Deformable DETR's encoder for SMCA's decoder."""

import torch
from mmdet.models.layers import DeformableDetrTransformerEncoder
from mmdet.registry import MODELS
from torch import Tensor

from .encoder import LevelEncoder
from .memory import Memory
from .values import check_count


@MODELS.register_module()
class SMCADeformableEncoder(LevelEncoder, DeformableDetrTransformerEncoder):
    """MMDetection's Deformable DETR encoder with the interface of SMCA's encoders.

    Configuration keys, weights and result are those of ``DeformableDetrTransformerEncoder``; the
    number of levels is ``layer_cfg.self_attn_cfg.num_levels``.

    Raises:
        ValueError: If there is no layer.
    """

    NUM_LEVELS_KEY = 'encoder.layer_cfg.self_attn_cfg.num_levels'

    def __init__(self, num_layers: int, layer_cfg: dict, **kwargs) -> None:
        check_count('encoder.num_layers', num_layers)
        super().__init__(num_layers, layer_cfg, **kwargs)
        self.num_levels = self.layers[0].self_attn.num_levels

    def forward(self, memory: Memory) -> Memory:
        """Encode the cells of all levels; see :meth:`.encoder.SMCAEncoder.forward`."""
        spatial_shapes = torch.tensor(memory.shapes, device=memory.cells.device)
        sizes = spatial_shapes.prod(dim=1)
        cells = super().forward(
            query=memory.cells,
            query_pos=memory.pos,
            key_padding_mask=memory.mask,
            spatial_shapes=spatial_shapes,
            level_start_index=sizes.cumsum(0) - sizes,
            valid_ratios=_valid_ratios(memory),
        )
        return memory.encoded(cells)


def _valid_ratios(memory: Memory) -> Tensor:
    """Fraction of every level that is not padding, along x and y, (B, L, 2)."""
    # Half precision would misplace the sampling points by tenths of a cell.
    dtype = torch.promote_types(memory.cells.dtype, torch.float32)
    ratios = []
    for (height, width), padding in memory.levels():
        if padding is None:
            ratios.append(memory.cells.new_ones(len(memory.cells), 2, dtype=dtype))
            continue
        content = ~padding.unflatten(1, (height, width))
        cells = torch.stack([content.any(dim).sum(dim=1) for dim in (1, 2)], dim=-1)
        # At least one cell: reference points are divided by the ratio, even if all is padding.
        ratios.append(cells.clamp(min=1).to(dtype) / cells.new_tensor([width, height]))
    return torch.stack(ratios, dim=1)
