"""Transformer encoder."""

from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor

from .self_attention import SelfAttention


@MODELS.register_module()
class SMCAEncoderLayer(BaseModule):
    """Post-norm encoder layer: self-attention, FFN.

    Configuration keys and state dict are those of MMDetection's ``DetrTransformerEncoderLayer``.

    Args:
        self_attn_cfg: Arguments of :class:`SelfAttention`.
        ffn_cfg: Arguments of ``mmcv.cnn.bricks.transformer.FFN``.
        norm_cfg: Norm layer. Defaults to ``dict(type='LN')``.
        init_cfg: MMEngine's initialisation config. Defaults to None.
    """

    def __init__(
        self,
        self_attn_cfg: dict,
        ffn_cfg: dict,
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.self_attn = SelfAttention(**self_attn_cfg)
        self.embed_dims = self.self_attn.embed_dims
        self.ffn = FFN(**ffn_cfg)
        norm_cfg = norm_cfg or dict(type='LN')
        self.norms = ModuleList(build_norm_layer(norm_cfg, self.embed_dims)[1] for _ in range(2))

    def forward(self, query: Tensor, query_pos: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """Encode cells.

        Args:
            query: Cells, (B, N, C).
            query_pos: Their position encoding, (B, N, C).
            key_padding_mask: True where a cell is padding, (B, N), or None.

        Returns:
            Tensor of shape (B, N, C).
        """
        query = self.norms[0](self.self_attn(query, query_pos, key_padding_mask))
        return self.norms[1](self.ffn(query))


@MODELS.register_module()
class SMCAEncoder(BaseModule):
    """Stack of encoder layers, DETR's: no norm after the last.

    Args:
        num_layers: Number of layers.
        layer_cfg: Config of every layer; ``type`` defaults to ``SMCAEncoderLayer``.
        init_cfg: MMEngine's initialisation config. Defaults to None.
    """

    def __init__(self, num_layers: int, layer_cfg: dict, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg=init_cfg)
        layer_cfg = {'type': 'SMCAEncoderLayer', **layer_cfg}
        self.layers = ModuleList(MODELS.build(layer_cfg) for _ in range(num_layers))
        self.embed_dims = self.layers[0].embed_dims

    def forward(self, query: Tensor, query_pos: Tensor, key_padding_mask: Tensor | None) -> Tensor:
        """Encode cells; arguments and result as in :meth:`SMCAEncoderLayer.forward`."""
        for layer in self.layers:
            query = layer(query, query_pos, key_padding_mask)
        return query
