"""The paper's prior in place of ``BoxPrior``, an ablation of SMCA-DINO."""

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .attention import Gaussians
from .precision import at_least_float32
from .values import check_positive


@MODELS.register_module()
class StaticPrior(BaseModule):
    r"""The paper's prior over several levels: fixed centre, scales independent of the box.

    With the centre c of a query's first box and, for head m, offsets o and scales s linear in the
    features u,

    .. math:: \log G_m(x) = -\sum_{axes} s_m^2 (x - c - o_m)^2 / \beta

    in cells of stride 32, the same on every level, without gates.

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M. Defaults to 8.
        strides: Stride of every feature level, in pixels. Defaults to (8, 16, 32, 64).
        beta: Bandwidth in squared cells of stride 32, positive. Defaults to 8, as in the paper.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``beta`` is not positive.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        strides: Sequence[int] = (8, 16, 32, 64),
        beta: float = 8.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_positive('spatial_prior_cfg.beta', beta)
        self.num_heads = num_heads
        self.strides = tuple(strides)
        self.beta = beta
        self.offsets = nn.Linear(embed_dims, num_heads * 2)
        self.scales = nn.Linear(embed_dims, num_heads * 2)
        self.init_weights()

    def init_weights(self) -> None:
        """Set the scales to 1 for every query; offsets start as in :class:`.SpatialPrior`."""
        nn.init.zeros_(self.scales.weight)
        nn.init.ones_(self.scales.bias)

    def forward(self, features: Tensor, boxes: Tensor, image_sizes: Tensor) -> Gaussians:
        """Place the Gaussians of every query; arguments as in :meth:`.BoxPrior.forward`.

        Returns:
            The priors.
        """
        coarse = 32 / self.strides[0]
        with torch.autocast(features.device.type, enabled=False):
            features = features.to(self.offsets.weight.dtype)
            offsets, scales = (
                at_least_float32(linear(features))
                .unflatten(-1, (self.num_heads, 2))
                .transpose(1, 2)
                for linear in (self.offsets, self.scales)
            )
            center = boxes[..., :2] * (image_sizes / self.strides[0])[:, None]
            precisions = scales.square() / (self.beta * coarse**2)
        return Gaussians(center[:, None] + offsets * coarse, precisions)
