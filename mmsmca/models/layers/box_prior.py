"""The spatial prior tied to a box: where and how widely a query attends."""

import math
from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .attention import Gaussians
from .precision import at_least_float32
from .values import check_positive, check_strides


def directions(num_heads: int) -> Tensor:
    """Evenly spread directions (x, y) of the heads, whose larger component is 1, (M, 2)."""
    angles = torch.arange(num_heads) * (2 * math.pi / num_heads)
    ring = torch.stack((angles.cos(), angles.sin()), dim=-1)
    return ring / ring.abs().amax(dim=-1, keepdim=True)


@MODELS.register_module()
class BoxPrior(BaseModule):
    r"""Gaussians placed and scaled by a query's box, which every decoder layer refines.

    With the box (c, w, h), the query's features u and, for head m,

    .. math::

        c_m = c + o_m (w, h), \quad
        \sigma_m^2 = (e^{k_m} (w, h))^2 + f^2, \quad
        \log G_{m,j}(x) = g_{m,j} - \sum_{axes} (x - c_m)^2 / (2 \sigma_m^2)

    where o, k and the gates g are linear in u and initially independent of it: the heads start in
    different directions, like Deformable DETR's sampling points. Offsets are not bounded, so that a
    query with too small a box can attend beyond it.

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M. Defaults to 8.
        strides: Stride of every feature level, in pixels. Defaults to (8, 16, 32, 64).
        offset: Initial distance of the heads' centres from the box centre, in box sizes, along
            the axis on which it is larger. Defaults to 0.25.
        width: Initial standard deviation in box sizes, positive. Defaults to 0.25.
        floor: Part f of the standard deviation that does not depend on the box, in finest cells,
            positive: keeps boxes smaller than a cell visible. Defaults to 0.5.
        gated: Whether queries weight the levels. The gates start at :math:`\log (r_j / r_1)^2`, so
            that all levels have equal mass, though each has a quarter of the cells of the one
            before. Defaults to True.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``width``, ``floor`` or a stride is not positive.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        strides: Sequence[int] = (8, 16, 32, 64),
        offset: float = 0.25,
        width: float = 0.25,
        floor: float = 0.5,
        gated: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        for name, value in (('width', width), ('floor', floor)):
            check_positive(f'spatial_prior_cfg.{name}', value)
        self.num_heads = num_heads
        self.strides = check_strides(strides)
        self.offset, self.width, self.floor = offset, width, floor
        self.offsets = nn.Linear(embed_dims, num_heads * 2)
        self.widths = nn.Linear(embed_dims, num_heads * 2)
        self.gates = nn.Linear(embed_dims, num_heads * len(strides)) if gated else None
        self.init_weights()

    def init_weights(self) -> None:
        """Place the Gaussians around the box, the same for every query."""
        for linear in filter(None, (self.offsets, self.widths, self.gates)):
            nn.init.zeros_(linear.weight)
        with torch.no_grad():
            self.offsets.bias.copy_((directions(self.num_heads) * self.offset).flatten())
            self.widths.bias.fill_(math.log(self.width))
            if self.gates is not None:
                equal_mass = [2 * math.log(stride / self.strides[0]) for stride in self.strides]
                self.gates.bias.copy_(torch.tensor(equal_mass).repeat(self.num_heads))

    def forward(self, features: Tensor, boxes: Tensor, image_sizes: Tensor) -> Gaussians:
        """Place the Gaussians of every query.

        Args:
            features: Query features u, (B, Q, C).
            boxes: Boxes (cx, cy, w, h) in [0, 1] of the image content, (B, Q, 4).
            image_sizes: Width and height of each image's content, without padding, in pixels,
                (B, 2).

        Returns:
            The priors, in finest cells: pixels divided by the finest stride.
        """
        # Half precision is too coarse for offsets of several cells.
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.offsets.weight.dtype)
            offsets, widths = (
                at_least_float32(linear(features))
                .unflatten(-1, (self.num_heads, 2))
                .transpose(1, 2)
                for linear in (self.offsets, self.widths)
            )
            cells = (image_sizes / self.strides[0])[:, None, None]
            center, size = boxes[:, None, :, :2] * cells, boxes[:, None, :, 2:] * cells
            variances = (widths.exp() * size).square() + self.floor**2
            gates = None
            if self.gates is not None:
                gates = self.gates(features).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return Gaussians(center + offsets * size, 0.5 / variances, gates)
