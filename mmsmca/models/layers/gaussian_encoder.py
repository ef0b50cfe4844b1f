"""Encoder self-attention over all levels under a Gaussian prior; not part of the paper."""

import math

import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from .box_prior import JointPrior, directions
from .encoder import LevelEncoder
from .joint_attention import Cells, place_cells
from .joint_co_attention import JointCoAttention
from .memory import Memory
from .precision import widen
from .values import check_count

# Lower bound of the standard deviation, in cells: as BoxPrior's default floor.
FLOOR = 0.5


class CellPrior(nn.Module):
    r"""Gaussians placed and scaled by a cell, as those of :class:`.BoxPrior` by a box.

    For head m and a cell at x_i on a level of stride r, in finest cells,

    .. math::

        c_m = x_i + o_m r / r_1, \quad
        \sigma_m^2 = (e^{2 k_m} + f^2) (r / r_1)^2, \quad
        \log G_{m,j}(x) = g_{m,j} - \sum_{axes} (x - c_m)^2 / (2 \sigma_m^2)

    where o, k and the gates g are learned parameters, shared by all cells and images.

    Args:
        num_heads: Heads M.
        num_levels: Number of levels L, each of twice the stride of the one before.
    """

    def __init__(self, num_heads: int, num_levels: int) -> None:
        super().__init__()
        self.offsets = nn.Parameter(torch.empty(num_heads, 2))
        self.widths = nn.Parameter(torch.empty(num_heads, 2))
        self.gates = nn.Parameter(torch.empty(num_heads, num_levels))
        self.init_weights()

    def init_weights(self) -> None:
        """Place the heads around the cell, alternately one and two cells away; equal level mass."""
        num_heads, num_levels = self.gates.shape
        cells_away = 1 + torch.arange(num_heads) % 2
        with torch.no_grad():
            self.offsets.copy_(directions(num_heads) * cells_away[:, None])
            self.widths.zero_()
            self.gates.copy_(2 * math.log(2) * torch.arange(num_levels).expand(num_heads, -1))

    def forward(self, cells: Cells) -> JointPrior:
        """Place the Gaussians of every cell.

        Args:
            cells: Coordinates and levels of the cells.

        Returns:
            The priors of all cells, shared by all images: the batch size is 1.
        """
        # Size of each cell in finest cells, (N, 1).
        stride = (2**cells.levels)[:, None].to(cells.coordinates.dtype)
        variances = (self.widths.exp().square() + FLOOR**2)[:, None] * stride.square()
        centers = cells.coordinates + self.offsets[:, None] * stride
        gates = self.gates[:, None].expand(-1, stride.size(0), -1)
        return JointPrior(centers[None], 0.5 / variances[None], gates[None])


class GaussianEncoderLayer(BaseModule):
    """Post-norm encoder layer: self-attention over all levels under Gaussians, FFN.

    Args:
        num_levels: Number of levels.
        self_attn_cfg: Arguments of :class:`.JointCoAttention`, whose content logits start at zero.
        ffn_cfg: Arguments of ``mmcv.cnn.bricks.transformer.FFN``.
        norm_cfg: Norm layer. Defaults to ``dict(type='LN')``.
    """

    def __init__(
        self, num_levels: int, self_attn_cfg: dict, ffn_cfg: dict, norm_cfg: dict | None = None
    ) -> None:
        super().__init__()
        self.self_attn = JointCoAttention(num_levels=num_levels, **self_attn_cfg)
        self.prior = CellPrior(self.self_attn.num_heads, num_levels)
        self.ffn = FFN(**ffn_cfg)
        self.embed_dims = self_attn_cfg['embed_dims']
        norm_cfg = norm_cfg or dict(type='LN')
        self.norms = ModuleList(build_norm_layer(norm_cfg, self.embed_dims)[1] for _ in range(2))

    def forward(self, feat: Tensor, feat_pos: Tensor, cells: Cells) -> Tensor:
        """Encode the cells.

        Args:
            feat: Cells of all levels, (B, N, C).
            feat_pos: Their position encoding, (B, N, C).
            cells: Their coordinates and padding.

        Returns:
            Tensor of shape (B, N, C).
        """
        images = feat.size(0)
        prior = JointPrior(*(x.expand(images, -1, -1, -1) for x in self.prior(cells)))
        key = feat + feat_pos
        feat = self.norms[0](self.self_attn(feat, feat_pos, key, feat, prior, cells))
        return self.norms[1](self.ffn(feat))


@MODELS.register_module()
class SMCAGaussianEncoder(LevelEncoder):
    """Stack of layers in which every cell attends to all levels, initially around itself.

    Unpublished: in SMCA only the decoder has a prior. It is folded as in SMCA-DINO, so a layer
    costs as much as a multi-scale layer of :class:`.SMCAEncoder`.

    Args:
        num_layers: Number of layers.
        layer_cfg: ``self_attn_cfg``, ``ffn_cfg`` and, optionally, ``norm_cfg`` of every
            :class:`GaussianEncoderLayer`.
        num_levels: Number of levels, each with twice the stride of the one before.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If there is no layer or no level.
    """

    DOUBLING = True

    def __init__(
        self, num_layers: int, layer_cfg: dict, num_levels: int, init_cfg: dict | None = None
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_count('encoder.num_layers', num_layers)
        check_count('encoder.num_levels', num_levels)
        self.num_levels = num_levels
        self.layers = ModuleList(
            GaussianEncoderLayer(num_levels, **layer_cfg) for _ in range(num_layers)
        )
        self.embed_dims = self.layers[0].embed_dims

    def forward(self, memory: Memory) -> Memory:
        """Encode the cells of all levels; see :meth:`.encoder.SMCAEncoder.forward`."""
        # Width and height of the finest level, padding included.
        height, width = memory.shapes[0]
        size = widen(self.layers[0].prior.widths).new_tensor([[width, height]])
        strides = [2**level for level in range(self.num_levels)]
        places = place_cells(memory.shapes, strides, size, memory.mask)
        cells = memory.cells
        for layer in self.layers:
            cells = layer(cells, memory.pos, places)
        return memory.encoded(cells)
