"""Spatially modulated co-attention (paper, section 3.2 and 3.3)."""

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .attention import IMPLEMENTATIONS, gaussian_attention
from .projections import AttentionProjections
from .spatial_prior import LevelPrior


@MODELS.register_module()
class CoAttention(BaseModule):
    r"""Co-attention of queries and feature cells, modulated by Gaussian priors, with residual.

    Every level gets a softmax of its own; the levels are averaged:

    .. math:: C = \frac{1}{L} \sum_j softmax(K_j^T Q / \sqrt{d} + \log G_j) V_j

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M; has to divide the channels. Defaults to 8.
        dropout: Probability of dropping an attention weight, and a channel of the output.
            Defaults to 0.
        batch_first: Kept for the configs of MMDetection's DETR; has to be True.
        implementation: How the attention is computed, see :mod:`.attention`. Defaults to ``auto``.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``, ``batch_first`` is False or
            ``implementation`` is unknown.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        dropout: float = 0.0,
        batch_first: bool = True,
        implementation: str = 'auto',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not batch_first:
            raise ValueError('cross_attn_cfg.batch_first=False: only True is supported')
        if implementation not in ('auto', *IMPLEMENTATIONS):
            raise ValueError(
                f'cross_attn_cfg.implementation={implementation!r} is unknown, choose one of '
                f'{["auto", *IMPLEMENTATIONS]}'
            )
        self.implementation = implementation
        self.attn = AttentionProjections(embed_dims, num_heads)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        priors: Sequence[LevelPrior],
        level_shapes: Sequence[tuple[int, int]],
        memory_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from the queries to the cells of every level.

        Args:
            query: (B, Q, C).
            query_pos: Query embedding, (B, Q, C).
            memory: Encoded cells of all levels, one level after the other, (B, N, C).
            memory_pos: Position encoding of the cells, (B, N, C).
            priors: Gaussian priors of the queries, one a level.
            level_shapes: Height and width of every level, in cells.
            memory_mask: True where a cell is padding, (B, N). Defaults to None.

        Returns:
            ``query`` plus the co-attention's output, (B, Q, C).
        """
        q = self.attn.query(query + query_pos)
        sizes = [height * width for height, width in level_shapes]
        keys = self.attn.key(memory + memory_pos).split(sizes, dim=2)
        values = self.attn.value(memory).split(sizes, dim=2)
        masks = [None] * len(sizes) if memory_mask is None else memory_mask.split(sizes, dim=1)
        dropout_p = self.dropout.p if self.training else 0.0
        attended = [
            gaussian_attention(
                q,
                k,
                v,
                prior.centers,
                prior.scales,
                shape,
                prior.beta,
                mask,
                dropout_p,
                self.implementation,
            )
            for k, v, prior, shape, mask in zip(
                keys, values, priors, level_shapes, masks, strict=True
            )
        ]
        return query + self.dropout(self.attn.output(torch.stack(attended).mean(0)))
