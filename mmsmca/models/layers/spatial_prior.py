"""The dynamic spatial prior: where and how widely a query attends (paper, section 3.2)."""

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .attention import Gaussians
from .precision import at_least_float32
from .values import check_choice, check_positive, check_strides

# Number of scales s, before squaring, that a prior has per query (and head and level).
SCALES = {
    'fixed': 0,  # s = 1
    'isotropic': 1,  # one for both axes, the paper's "single"
    'independent': 2,  # (s_x, s_y)
    'covariance': 3,  # (s_x, s_y, s_xy), the third weights dx^2 dy^2
}


@MODELS.register_module()
class SpatialPrior(BaseModule):
    r"""Per-head offsets and scales of the Gaussian priors, predicted from the queries.

    The decoder provides the centre of a query, which all heads and levels share. For every head
    (and level), this module predicts an offset from the centre, in cells, and scales. The scales
    start at 1 for every query.

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M. Defaults to 8.
        strides: Stride of every feature level, in pixels. Defaults to (32,).
        scale: ``fixed``, ``isotropic``, ``independent`` or ``covariance``: see :data:`SCALES`.
            Defaults to ``independent``.
        head_shared: Whether all heads share one prior, without offsets: the paper's ablation of
            multi-head modulation. Defaults to False.
        beta: Bandwidth of the Gaussian in squared cells, positive; one for all levels or one per
            level. Defaults to 8, as in the paper.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``scale``, ``beta`` or ``strides`` is invalid.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        strides: Sequence[int] = (32,),
        scale: str = 'independent',
        head_shared: bool = False,
        beta: float | Sequence[float] = 8.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_choice('spatial_prior_cfg.scale', scale, SCALES)
        strides = check_strides(strides)
        betas = tuple(beta) if isinstance(beta, Sequence) else (beta,) * len(strides)
        if len(betas) != len(strides):
            raise ValueError(
                f'spatial_prior_cfg.beta={beta} must be a positive number, or one for each of '
                f'the {len(strides)} levels of model.strides'
            )
        for value in betas:
            check_positive('spatial_prior_cfg.beta', value)
        self.num_heads = num_heads
        self.strides = strides
        self.betas = betas
        self.num_scales = SCALES[scale]

        self.norm = nn.LayerNorm(embed_dims)
        priors = len(strides) * (1 if head_shared else num_heads)
        self.offsets = None if head_shared else nn.Linear(embed_dims, priors * 2)
        self.scales = nn.Linear(embed_dims, priors * self.num_scales) if self.num_scales else None
        self.init_weights()

    def init_weights(self) -> None:
        """Set the scales to 1 for every query."""
        if self.scales is not None:
            nn.init.zeros_(self.scales.weight)
            nn.init.ones_(self.scales.bias)

    def features(self, query: Tensor, query_pos: Tensor) -> Tensor:
        """Compute the prior features u, from which centre, offsets and scales are predicted.

        Args:
            query: Input of the decoder layer, (B, Q, C).
            query_pos: Query embedding, (B, Q, C).

        Returns:
            Tensor of shape (B, Q, C).
        """
        return self.norm(query + query_pos)

    def forward(self, features: Tensor, centers: Tensor, image_sizes: Tensor) -> list[Gaussians]:
        """Place the Gaussians of every query on every level.

        Args:
            features: Prior features u, (B, Q, C).
            centers: Centres (x, y) in [0, 1] of the image content, (B, Q, 2).
            image_sizes: Width and height of each image's content, without padding, in pixels,
                (B, 2).

        Returns:
            Gaussians for every level, in its cells; a = s² / beta.
        """
        center_pixels = centers * image_sizes[:, None, :]
        offsets, scales = self._split(self.offsets, features), self._split(self.scales, features)
        priors = []
        for level, (stride, beta) in enumerate(zip(self.strides, self.betas, strict=True)):
            level_centers = (center_pixels / stride).unsqueeze(1)
            if offsets is not None:
                level_centers = level_centers + offsets[level]
            level_scales = scales[level] if scales is not None else torch.ones_like(level_centers)
            if self.num_scales == 1:
                level_scales = level_scales.expand(-1, -1, -1, 2)
            priors.append(
                Gaussians(
                    self._every_head(level_centers),
                    self._every_head(level_scales).square() / beta,
                )
            )
        return priors

    def _split(self, linear: nn.Linear | None, features: Tensor) -> Tensor | None:
        """Apply ``linear`` to (B, Q, C) and split the result, (L, B, M or 1, Q, values)."""
        if linear is None:
            return None
        heads = 1 if self.offsets is None else self.num_heads
        # Half precision is too coarse for offsets of several cells.
        with torch.autocast(features.device.type, enabled=False):
            split = at_least_float32(linear(features))
        split = split.unflatten(-1, (len(self.strides), heads, -1))
        return split.permute(2, 0, 3, 1, 4)

    def _every_head(self, x: Tensor) -> Tensor:
        """Expand a prior that the heads share to all of them."""
        return x.expand(-1, self.num_heads, -1, -1)
