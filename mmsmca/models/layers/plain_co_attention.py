"""Co-attention without a prior, a baseline of SMCA-DINO."""

import math

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .box_prior import JointPrior
from .explicit_attention import content_logits
from .fused_attention import fused_attention
from .joint_attention import Cells
from .projections import AttentionProjections


@MODELS.register_module()
class PlainCoAttention(BaseModule):
    r"""DETR's co-attention over the cells of all levels, with a residual connection.

    .. math:: C = softmax(K^T Q / \sqrt{d}) V, \quad \text{over the cells of all levels}

    Replaces :class:`.JointCoAttention`, with all channels of a head for the content and DETR's
    initialisation: plain attention itself, not joint co-attention stripped of its prior.

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M; must divide the channels. Defaults to 8.
        num_levels: Unused, as content logits do not depend on levels. Defaults to 4.
        dropout: Dropout probability of attention weights and of the output. Defaults to 0.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.num_heads = num_heads
        self.attn = AttentionProjections(embed_dims, num_heads)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key: Tensor,
        value: Tensor,
        prior: JointPrior,
        cells: Cells,
    ) -> Tensor:
        """Attend to the cells of all levels; arguments as in :meth:`.JointCoAttention.forward`.

        Returns:
            ``query`` plus the co-attention's output, (B, Q, C), independent of ``prior``.
        """
        q = self.attn.query(query + query_pos)
        out = fused_attention(
            q,
            self.attn.key(key),
            self.attn.value(value),
            cells.padding,
            self.dropout.p if self.training else 0.0,
            scale=1 / math.sqrt(q.size(-1)),
        )
        return query + self.dropout(self.attn.output(out))

    def logits(
        self, query: Tensor, query_pos: Tensor, key: Tensor, prior: JointPrior, cells: Cells
    ) -> tuple[Tensor, Tensor]:
        """Compute the attention logits; arguments are those of :meth:`forward`.

        Returns:
            Content logits, and zeros in place of a log prior, (B, M, Q, N) each.
        """
        content = content_logits(self.attn.query(query + query_pos), self.attn.key(key))
        return content, torch.zeros_like(content)
