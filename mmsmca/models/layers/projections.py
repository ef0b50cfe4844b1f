"""Input and output projections of multi-head attention."""

import torch.nn.functional as F
from torch import Tensor, nn

from .values import check_heads


def split_heads(x: Tensor, num_heads: int) -> Tensor:
    """(B, N, M * k) to (B, M, N, k)."""
    return x.unflatten(-1, (num_heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, M, N, k) to (B, N, M * k)."""
    return x.transpose(1, 2).flatten(2)


class AttentionProjections(nn.Module):
    """Input and output projections of multi-head attention, without the attention itself.

    State dict, initialisation and result are those of :class:`torch.nn.MultiheadAttention`
    (``in_proj_weight``, ``in_proj_bias``, ``out_proj``), so that DETR checkpoints load.

    Args:
        embed_dims: Channels C.
        num_heads: Heads M; must divide the channels.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``.
    """

    def __init__(self, embed_dims: int, num_heads: int) -> None:
        super().__init__()
        check_heads(embed_dims, num_heads)
        self.num_heads = num_heads
        # Only its parameters and their names are used, not its forward pass.
        reference = nn.MultiheadAttention(embed_dims, num_heads)
        self.in_proj_weight = reference.in_proj_weight
        self.in_proj_bias = reference.in_proj_bias
        self.out_proj = nn.Linear(embed_dims, embed_dims)
        self.out_proj.load_state_dict(reference.out_proj.state_dict())

    def _in_proj(self, x: Tensor, first: int, count: int) -> list[Tensor]:
        """Apply ``count`` of the stacked projections (query, key, value) from ``first`` on."""
        channels = x.size(-1)
        rows = slice(first * channels, (first + count) * channels)
        projected = F.linear(x, self.in_proj_weight[rows], self.in_proj_bias[rows])
        return [split_heads(p, self.num_heads) for p in projected.chunk(count, dim=-1)]

    def query(self, x: Tensor) -> Tensor:
        """Project (B, N, C) to queries (B, M, N, d)."""
        return self._in_proj(x, 0, 1)[0]

    def query_key(self, x: Tensor) -> list[Tensor]:
        """Project (B, N, C) to queries and keys, (B, M, N, d) each, in one matrix product."""
        return self._in_proj(x, 0, 2)

    def key(self, x: Tensor) -> Tensor:
        """Project (B, N, C) to keys (B, M, N, d)."""
        return self._in_proj(x, 1, 1)[0]

    def value(self, x: Tensor) -> Tensor:
        """Project (B, N, C) to values (B, M, N, d)."""
        return self._in_proj(x, 2, 1)[0]

    def output(self, x: Tensor) -> Tensor:
        """Merge the heads of (B, M, N, d) and project to (B, N, C)."""
        return self.out_proj(merge_heads(x))
