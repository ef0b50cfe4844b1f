"""The spatial prior tied to a box: where, and how far around it, a query looks."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn


class JointPrior(NamedTuple):
    r"""Gaussian priors of all queries over the cells of all levels, in one coordinate system.

    .. math:: \log G_j(x) = g_j - \sum_{axes} a_j (x - c)^2

    Coordinates are pixels divided by the finest stride: cell i of level j lies at
    (i + 0.5) r_j / r_1.

    Attributes:
        centers: Centres (x, y) in finest cells, (B, M, Q, 2).
        precisions: The factors a along x and y, in 1 / squared finest cells, of every level:
            (B, M, Q, L, 2).
        gates: What is added to the logits of a level, (B, M, Q, L).
    """

    centers: Tensor
    precisions: Tensor
    gates: Tensor


@MODELS.register_module()
class BoxPrior(BaseModule):
    r"""Gaussians placed and scaled by a query's box, which every decoder layer refines.

    With the box (c, w, h), u the query's features and for head m

    .. math::

        c_m = c + o_m (w, h), \quad
        \sigma_{m,j}^2 = (e^{k_m} (w, h))^2 + (r_j / 2)^2, \quad
        \log G_{m,j}(x) = g_{m,j} - \sum_{axes} (x - c_m)^2 / (2 \sigma_{m,j}^2)

    where o, k and the gates g are linear in u. They start independent of the query: the heads look
    in different directions (as Deformable DETR's sampling points do) and as far as the box is wide;
    with the gates :math:`\log (r_j / r_1)^2` all levels start with equal mass, though each has a
    quarter of the cells of the one before.

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M. Defaults to 8.
        strides: Stride of every feature level, in pixels. Defaults to (8, 16, 32, 64).
        offset: Initial distance of the heads' centres from the box's, in boxes, along the axis
            on which it is larger. Defaults to 0.25.
        width: Initial standard deviation in boxes, positive. Defaults to 0.25.
        floor: Whether half a cell of the level is added to the width, so that a box smaller than a
            cell still sees it. Defaults to True.
        gated: Whether levels have gates. Defaults to True.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``width`` or a stride is not positive.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        strides: Sequence[int] = (8, 16, 32, 64),
        offset: float = 0.25,
        width: float = 0.25,
        floor: bool = True,
        gated: bool = True,
        norm: bool = False,
        common: bool = False,
        spread: float = 1.0,
        level_free: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if width <= 0:
            raise ValueError(f'spatial_prior_cfg.width={width} has to be positive')
        if not strides or any(stride <= 0 for stride in strides):
            raise ValueError(f'decoder.strides={strides} has to list a positive stride a level')
        self.num_heads = num_heads
        self.strides = tuple(strides)
        self.offset, self.width = offset, width
        self.floor = floor
        self.common, self.spread = common, spread
        self.level_free = level_free
        self.norm = nn.LayerNorm(embed_dims) if norm else nn.Identity()
        self.offsets = nn.Linear(embed_dims, num_heads * 2)
        self.widths = nn.Linear(embed_dims, num_heads * 2)
        self.gates = nn.Linear(embed_dims, num_heads * len(strides)) if gated else None
        self.init_weights()

    def init_weights(self) -> None:
        """Look around the box, whatever the query."""
        angles = torch.arange(self.num_heads) * (2 * math.pi / self.num_heads)
        ring = torch.stack((angles.cos(), angles.sin()), dim=-1)
        ring = ring / ring.abs().amax(dim=-1, keepdim=True)
        for linear in (self.offsets, self.widths, self.gates):
            if linear is not None:
                nn.init.zeros_(linear.weight)
        with torch.no_grad():
            self.offsets.bias.copy_((ring * self.offset).flatten())
            widths = torch.full((self.num_heads, 2), math.log(self.width))
            widths = widths + torch.linspace(-1, 1, self.num_heads)[torch.arange(self.num_heads) * 3 % self.num_heads, None] * math.log(self.spread)
            self.widths.bias.copy_(widths.flatten())
            if self.gates is not None:
                mass = [2 * math.log(stride / self.strides[0]) for stride in self.strides]
                self.gates.bias.copy_(torch.tensor(mass).repeat(self.num_heads))

    def forward(self, features: Tensor, boxes: Tensor, image_sizes: Tensor) -> JointPrior:
        """Place the Gaussians of every query.

        Args:
            features: Query features u, (B, Q, C).
            boxes: Boxes (cx, cy, w, h) in [0, 1] of the image content, (B, Q, 4).
            image_sizes: Width and height of each image's content, without padding, in pixels,
                (B, 2).

        Returns:
            The priors.
        """
        features = self.norm(features)
        # Offsets of some cells do not survive half precision.
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.offsets.weight.dtype)
            offsets, widths = (
                linear(features).unflatten(-1, (self.num_heads, 2)).transpose(1, 2)
                for linear in (self.offsets, self.widths)
            )
            # In finest cells.
            center, size = ((boxes.unflatten(-1, (2, 2)) * (image_sizes / self.strides[0])[:, None, None]).unsqueeze(1)).unbind(-2)
            centers = center + offsets * size
            variances = (widths.exp() * size).square().unsqueeze(-2)
            floors = [stride / (2 * self.strides[0]) for stride in self.strides]
            if self.common:
                floors = [0.5] * len(floors)
            if not self.floor:
                floors = [1e-2] * len(floors)
            floors = variances.new_tensor(floors).square()[:, None]
            precisions = 0.5 / (variances + floors)
            if self.gates is None:
                gates = precisions.new_zeros(*precisions.shape[:-1])
            else:
                gates = self.gates(features).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return JointPrior(centers, precisions, gates)
