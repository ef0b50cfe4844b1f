"""Spatially modulated co-attention (paper, section 3.2 and 3.3)."""

import math
from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmsmca.denormals import flush_denormals

from .attention import IMPLEMENTATIONS, gaussian_attention
from .explicit_attention import gaussian_log_prior
from .projections import AttentionProjections
from .spatial_prior import LevelPrior

SCALE_SELECTIONS = ('learned', 'uniform')


@MODELS.register_module()
class CoAttention(BaseModule):
    r"""Co-attention of queries and feature cells, modulated by Gaussian priors, with residual.

    Every level gets a softmax of its own; each query weighs the levels (scale selection):

    .. math::

        C = \sum_j \alpha_j \, softmax(K_j^T Q / \sqrt{d} + \log G_j) V_j, \quad
        \alpha = softmax(W u)

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M; has to divide the channels. Defaults to 8.
        dropout: Probability of dropping an attention weight, and a channel of the output.
            Defaults to 0.
        batch_first: Kept for the configs of MMDetection's DETR; has to be True.
        implementation: How the attention is computed, see :mod:`.attention`. Defaults to ``auto``.
        num_levels: Number of feature levels. Defaults to 1.
        scale_selection: Weights of the levels: ``learned`` (alpha, shared by the heads) or
            ``uniform`` (1 / L). Without effect for one level. Defaults to ``learned``.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``, ``batch_first`` is False, or
            ``implementation`` or ``scale_selection`` is unknown.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        dropout: float = 0.0,
        batch_first: bool = True,
        implementation: str = 'auto',
        num_levels: int = 1,
        scale_selection: str = 'learned',
        init_cfg: dict | None = None,
    ) -> None:
        flush_denormals()  # Also without a detector of ours around it.
        super().__init__(init_cfg=init_cfg)
        if not batch_first:
            raise ValueError('cross_attn_cfg.batch_first=False: only True is supported')
        if implementation not in ('auto', *IMPLEMENTATIONS):
            raise ValueError(
                f'cross_attn_cfg.implementation={implementation!r} is unknown, choose one of '
                f'{["auto", *IMPLEMENTATIONS]}'
            )
        if scale_selection not in SCALE_SELECTIONS:
            raise ValueError(
                f'cross_attn_cfg.scale_selection={scale_selection!r} is unknown, choose one of '
                f'{list(SCALE_SELECTIONS)}'
            )
        self.implementation = implementation
        self.scale_selection = None
        if scale_selection == 'learned' and num_levels > 1:
            self.scale_selection = nn.Linear(embed_dims, num_levels)
        self.attn = AttentionProjections(embed_dims, num_heads)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        features: Tensor,
        priors: Sequence[LevelPrior],
        memory: Tensor,
        memory_pos: Tensor,
        memory_mask: Tensor | None,
        level_shapes: Sequence[tuple[int, int]],
    ) -> Tensor:
        """Attend from the queries to the cells of every level.

        Args:
            query: (B, Q, C).
            query_pos: Query embedding, (B, Q, C).
            features: Prior features u, (B, Q, C).
            priors: Gaussian priors of the queries, one per level.
            memory: Encoded cells of all levels, one level after the other, (B, N, C).
            memory_pos: Position encoding of the cells, (B, N, C).
            memory_mask: True where a cell is padding, (B, N), or None.
            level_shapes: Height and width of every level, in cells.

        Returns:
            ``query`` plus the co-attention's output, (B, Q, C).
        """
        q = self.attn.query(query + query_pos)
        k, v = self.attn.key(memory + memory_pos), self.attn.value(memory)
        dropout_p = self.dropout.p if self.training else 0.0
        levels = self._attend_levels(q, k, v, priors, memory_mask, level_shapes, dropout_p)
        return query + self.dropout(self.attn.output(self._select(levels, features)))

    def logits(
        self,
        query: Tensor,
        query_pos: Tensor,
        priors: Sequence[LevelPrior],
        memory: Tensor,
        memory_pos: Tensor,
        level_shapes: Sequence[tuple[int, int]],
    ) -> tuple[Tensor, Tensor]:
        """Logits of the attention weights, which :meth:`forward` need not have in memory.

        Arguments are those of :meth:`forward`.

        Returns:
            Logits by content, and the logarithm of the prior that is added to them, (B, M, Q, N).
        """
        q, k = self.attn.query(query + query_pos), self.attn.key(memory + memory_pos)
        log_priors = [
            gaussian_log_prior(prior.centers, prior.scales, shape, prior.beta)
            for prior, shape in zip(priors, level_shapes, strict=True)
        ]
        return q @ k.transpose(-2, -1) / math.sqrt(q.size(-1)), torch.cat(log_priors, dim=-1)

    def _attend_levels(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        priors: Sequence[LevelPrior],
        mask: Tensor | None,
        level_shapes: Sequence[tuple[int, int]],
        dropout_p: float,
    ) -> list[Tensor]:
        """Attend to every level by itself; (B, M, Q, d) each."""
        sizes = [height * width for height, width in level_shapes]
        masks = [None] * len(sizes) if mask is None else mask.split(sizes, dim=1)
        levels = zip(
            key.split(sizes, dim=2),
            value.split(sizes, dim=2),
            priors,
            level_shapes,
            masks,
            strict=True,
        )
        return [
            gaussian_attention(
                query,
                level_key,
                level_value,
                prior.centers,
                prior.scales,
                shape,
                prior.beta,
                level_mask,
                dropout_p,
                self.implementation,
            )
            for level_key, level_value, prior, shape, level_mask in levels
        ]

    def _select(self, levels: Sequence[Tensor], features: Tensor) -> Tensor:
        """Weigh the levels' results, (B, M, Q, d) each, for every query."""
        if len(levels) == 1:
            return levels[0]
        if self.scale_selection is None:
            return sum(levels[1:], levels[0]) / len(levels)
        alpha = self.scale_selection(features).softmax(-1)[:, None]
        weighed = [x * alpha[..., j : j + 1] for j, x in enumerate(levels)]
        return sum(weighed[1:], weighed[0])
