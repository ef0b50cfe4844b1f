"""Self-attention of the encoder and the decoder."""

from torch import Tensor, nn

from .attention import plain_attention
from .projections import AttentionProjections


class SelfAttention(nn.Module):
    """Residual multi-head self-attention, without materialised attention weights.

    Replaces ``mmcv.cnn.bricks.transformer.MultiheadAttention`` in MMDetection's DETR layers, with
    the same configuration keys and state dict (``attn.in_proj_weight``, ...).

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M; must divide the channels. Defaults to 8.
        dropout: Dropout probability of attention weights and of the output. Defaults to 0.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.embed_dims = embed_dims
        self.attn = AttentionProjections(embed_dims, num_heads)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        padding: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Attend from every token to every token that is not padding.

        Args:
            query: Tokens, (B, N, C).
            query_pos: Position encoding, added to queries and keys but not to values, (B, N, C).
            padding: True where a token is padding, (B, N). Defaults to None.
            attn_mask: True where a token must not see another, (N, N). Defaults to None.

        Returns:
            ``query`` plus the attention's output, (B, N, C).
        """
        q, k = self.attn.query_key(query + query_pos)
        dropout_p = self.dropout.p * self.training
        out = plain_attention(q, k, self.attn.value(query), padding, dropout_p, attn_mask)
        return query + self.dropout(self.attn.output(out))
