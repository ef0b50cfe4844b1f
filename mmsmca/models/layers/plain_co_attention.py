"""Co-attention without a prior, which SMCA-DINO is compared with."""

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
    r"""DETR's co-attention over the cells of all levels in one softmax, with residual.

    .. math:: C = softmax(K^T Q / \sqrt{d}) V, \quad \text{over the cells of all levels}

    The place of :class:`.JointCoAttention` with all channels of a head for the content, and DETR's
    initialisation: what attention does by itself, not what is left of it without a prior.

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M; has to divide the channels. Defaults to 8.
        num_levels: Without effect, as it is all the same to the content. Defaults to 4.
        dropout: Probability of dropping an attention weight, and a channel of the output.
            Defaults to 0.
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
            ``query`` plus the co-attention's output, (B, Q, C), whatever ``prior`` is.
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
        """Logits of the attention weights; arguments are those of :meth:`forward`.

        Returns:
            Logits by content, and what a prior adds to them, zeros, (B, M, Q, N).
        """
        content = content_logits(self.attn.query(query + query_pos), self.attn.key(key))
        return content, torch.zeros_like(content)
