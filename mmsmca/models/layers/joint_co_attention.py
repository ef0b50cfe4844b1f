"""Co-attention with one softmax over the cells of all levels, under a prior tied to a box."""

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .box_prior import JointPrior
from .explicit_attention import content_logits
from .joint_attention import IMPLEMENTATIONS, Cells, joint_log_prior, num_prior_channels
from .projections import merge_heads, split_heads
from .values import check_choice, check_heads


@MODELS.register_module()
class JointCoAttention(BaseModule):
    r"""Co-attention to the cells of all levels, modulated by priors, with a residual connection.

    .. math:: C = softmax(K^T Q / \sqrt{k} + \log G) V, \quad \text{over the cells of all levels}

    The folded prior and the padding mask take 5 + L of the d = C / M channels of each head; the
    other k are left for the content of queries and keys. So the attention costs as much as plain
    attention.

    The content logits start at zero: at first, attention only pools under the Gaussians.

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M; must divide the channels. Defaults to 8.
        num_levels: Number of feature levels L. Defaults to 4.
        dropout: Dropout probability of attention weights and of the output. Defaults to 0.
        implementation: ``explicit`` or ``folded``, see :mod:`.joint_attention`. Defaults to
            ``folded``.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``, a head has no channels left for
            the content, or ``implementation`` is unknown.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        dropout: float = 0.0,
        implementation: str = 'folded',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_heads(embed_dims, num_heads, 'cross_attn_cfg.')
        content = embed_dims // num_heads - num_prior_channels(num_levels)
        if content < 1:
            raise ValueError(
                f'cross_attn_cfg.num_heads={num_heads} leaves each head {embed_dims // num_heads} '
                f'channels, of which the prior over {num_levels} levels takes '
                f'{num_prior_channels(num_levels)}: use fewer heads or more embed_dims'
            )
        check_choice('cross_attn_cfg.implementation', implementation, IMPLEMENTATIONS)
        self.num_heads = num_heads
        self.implementation = implementation
        self.query_proj = nn.Linear(embed_dims, num_heads * content)
        self.key_proj = nn.Linear(embed_dims, num_heads * content)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """Start with content logits of zero, and other projections as in Deformable DETR."""
        for linear in (self.key_proj, self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.query_proj.weight)
        nn.init.zeros_(self.query_proj.bias)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key: Tensor,
        value: Tensor,
        prior: JointPrior,
        cells: Cells,
    ) -> Tensor:
        """Attend from the queries to the cells of all levels.

        Args:
            query: (B, Q, C).
            query_pos: Position encoding of the queries, (B, Q, C).
            key: Cells of all levels, concatenated, plus their position encoding, (B, N, C).
            value: The same cells without position encoding, (B, N, C).
            prior: Priors of the queries.
            cells: Coordinates and padding of the cells.

        Returns:
            ``query`` plus the co-attention's output, (B, Q, C).
        """
        projected = self.query_proj(query + query_pos), self.key_proj(key), self.value_proj(value)
        q, k, v = (split_heads(x, self.num_heads) for x in projected)
        dropout_p = self.dropout.p if self.training else 0.0
        out = IMPLEMENTATIONS[self.implementation](q, k, v, prior, cells, dropout_p)
        return query + self.dropout(self.output_proj(merge_heads(out)))

    def logits(
        self, query: Tensor, query_pos: Tensor, key: Tensor, prior: JointPrior, cells: Cells
    ) -> tuple[Tensor, Tensor]:
        """Compute the attention logits, which :meth:`forward` need not materialise.

        Arguments are those of :meth:`forward`.

        Returns:
            Content logits and the log prior that is added to them, (B, M, Q, N) each.
        """
        q = split_heads(self.query_proj(query + query_pos), self.num_heads)
        k = split_heads(self.key_proj(key), self.num_heads)
        return content_logits(q, k), joint_log_prior(prior, cells)
