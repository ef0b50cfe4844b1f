"""Self-attention of the encoder and the decoder."""

import math

from torch import Tensor, nn

from .fused_attention import fused_attention
from .projections import AttentionProjections


class SelfAttention(nn.Module):
    """Residual multi-head self-attention, without materialised attention weights.

    Replaces ``mmcv.cnn.bricks.transformer.MultiheadAttention`` in MMDetection's DETR layers, with
    the same configuration keys and state dict (``attn.in_proj_weight``, ...).

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M; must divide the channels. Defaults to 8.
        dropout: Dropout probability of attention weights and of the output. Defaults to 0.
        batch_first: Kept for MMDetection's DETR configs; must be True.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims`` or ``batch_first`` is False.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        dropout: float = 0.0,
        batch_first: bool = True,
    ) -> None:
        super().__init__()
        if not batch_first:
            raise ValueError('self_attn_cfg.batch_first=False: only True is supported')
        self.embed_dims = embed_dims
        self.attn = AttentionProjections(embed_dims, num_heads)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from every token to every token that is not padding.

        Args:
            query: Tokens, (B, N, C).
            query_pos: Position encoding, added to queries and keys but not to values, (B, N, C).
            key_padding_mask: True where a token is padding, (B, N). Defaults to None.
            attn_mask: True where a token must not see another, (N, N). Defaults to None.

        Returns:
            ``query`` plus the attention's output, (B, N, C).
        """
        q, k = self.attn.query_key(query + query_pos)
        dropout_p = self.dropout.p if self.training else 0.0
        out = fused_attention(
            q,
            k,
            self.attn.value(query),
            key_padding_mask,
            dropout_p,
            scale=1 / math.sqrt(q.size(-1)),
            attn_mask=attn_mask,
        )
        return query + self.dropout(self.attn.output(out))
