"""Spatially modulated co-attention (paper, sections 3.2 and 3.3)."""

from collections.abc import Sequence

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from mmsmca.denormals import flush_denormals

from .attention import IMPLEMENTATIONS, gaussian_attention
from .explicit_attention import content_logits, gaussian_log_prior
from .memory import LevelCells
from .projections import AttentionProjections
from .spatial_prior import LevelPrior
from .values import check_choice

SCALE_SELECTIONS = ('learned', 'uniform')


@MODELS.register_module()
class CoAttention(BaseModule):
    r"""Co-attention of queries to cells under Gaussian priors, with a residual connection.

    Each level has its own softmax, and each query weights the levels (scale selection):

    .. math::

        C = \sum_j \alpha_j \, softmax(K_j^T Q / \sqrt{d} + \log G_j) V_j, \quad
        \alpha = softmax(W u)

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M; must divide the channels. Defaults to 8.
        dropout: Dropout probability of attention weights and of the output. Defaults to 0.
        batch_first: Kept for MMDetection's DETR configs; must be True.
        implementation: How the attention is computed, see :mod:`.attention`. Defaults to ``auto``.
        num_levels: Number of feature levels. Defaults to 1.
        scale_selection: Weights of the levels: ``learned`` (alpha, shared by the heads) or
            ``uniform`` (1 / L). No effect with a single level. Defaults to ``learned``.
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
        flush_denormals()  # Also for use outside the detectors.
        super().__init__(init_cfg=init_cfg)
        if not batch_first:
            raise ValueError('cross_attn_cfg.batch_first=False: only True is supported')
        check_choice('cross_attn_cfg.implementation', implementation, ['auto', *IMPLEMENTATIONS])
        check_choice('cross_attn_cfg.scale_selection', scale_selection, SCALE_SELECTIONS)
        self.num_heads = num_heads
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
        key: Tensor,
        value: Tensor,
        priors: Sequence[LevelPrior],
        cells: Sequence[LevelCells],
        features: Tensor,
    ) -> Tensor:
        """Attend from the queries to the cells of every level.

        Args:
            query: (B, Q, C).
            query_pos: Query embedding, (B, Q, C).
            key: Cells of all levels, concatenated, plus their position encoding, (B, N, C).
            value: The same cells without position encoding, (B, N, C).
            priors: Gaussian priors of the queries, one per level.
            cells: Shape and padding of every level.
            features: Prior features u, (B, Q, C).

        Returns:
            ``query`` plus the co-attention's output, (B, Q, C).
        """
        q = self.attn.query(query + query_pos)
        k, v = self.attn.key(key), self.attn.value(value)
        dropout_p = self.dropout.p if self.training else 0.0
        sizes = [height * width for (height, width), _ in cells]
        levels = [
            gaussian_attention(q, *level, dropout_p, self.implementation)
            for level in zip(
                k.split(sizes, dim=2), v.split(sizes, dim=2), priors, cells, strict=True
            )
        ]
        return query + self.dropout(self.attn.output(self._select(levels, features)))

    def logits(
        self,
        query: Tensor,
        query_pos: Tensor,
        key: Tensor,
        priors: Sequence[LevelPrior],
        cells: Sequence[LevelCells],
    ) -> tuple[Tensor, Tensor]:
        """Compute the attention logits, which :meth:`forward` need not materialise.

        Arguments are those of :meth:`forward`.

        Returns:
            Content logits and the log prior that is added to them, (B, M, Q, N) each.
        """
        log_priors = [
            gaussian_log_prior(prior, level.shape)
            for prior, level in zip(priors, cells, strict=True)
        ]
        content = content_logits(self.attn.query(query + query_pos), self.attn.key(key))
        return content, torch.cat(log_priors, dim=-1)

    def _select(self, levels: Sequence[Tensor], features: Tensor) -> Tensor:
        """Combine the levels' results, (B, M, Q, d) each, by every query's level weights."""
        if len(levels) == 1:
            return levels[0]
        if self.scale_selection is None:
            return sum(levels[1:], levels[0]) / len(levels)
        alpha = self.scale_selection(features).softmax(-1)[:, None]
        weighed = [x * alpha[..., j : j + 1] for j, x in enumerate(levels)]
        return sum(weighed[1:], weighed[0])
