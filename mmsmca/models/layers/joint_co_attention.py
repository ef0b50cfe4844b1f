"""Co-attention over the cells of all levels in one softmax, under a prior tied to a box."""

from collections.abc import Sequence

from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .box_prior import JointPrior
from .joint_attention import explicit_joint_attention
from .projections import AttentionProjections


@MODELS.register_module()
class JointCoAttention(BaseModule):
    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        dropout: float = 0.0,
        zero_content: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.attn = AttentionProjections(embed_dims, num_heads)
        self.dropout = nn.Dropout(dropout)
        self.zero_content = zero_content
        self.init_weights()

    def init_weights(self) -> None:
        """Let the attention start as pooling under the Gaussians: a content part of zero."""
        if self.zero_content:
            nn.init.zeros_(self.attn.in_proj_weight[: self.attn.in_proj_weight.size(1)])

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        prior: JointPrior,
        memory: Tensor,
        memory_pos: Tensor,
        memory_mask: Tensor | None,
        level_shapes: Sequence[tuple[int, int]],
        strides: Sequence[int],
    ) -> Tensor:
        q = self.attn.query(query + query_pos)
        k, v = self.attn.key(memory + memory_pos), self.attn.value(memory)
        dropout_p = self.dropout.p if self.training else 0.0
        out = explicit_joint_attention(
            q, k, v, prior, level_shapes, strides, memory_mask, dropout_p
        )
        return query + self.dropout(self.attn.output(out))
