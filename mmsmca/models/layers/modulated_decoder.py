"""Construction of decoder layers and decoders, shared by SMCA and SMCA-DINO."""

from collections.abc import Sequence
from typing import Any

from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList

from .self_attention import SelfAttention
from .values import check_count, check_strides


class ModulatedDecoderLayer(BaseModule):
    """Post-norm decoder layer: self-attention, co-attention under a spatial prior, FFN.

    Configuration keys and state dict are those of MMDetection's decoder layers, extended by
    ``spatial_prior_cfg`` and ``spatial_prior``.

    Args:
        self_attn_cfg: Arguments of :class:`.SelfAttention`.
        cross_attn_cfg: Config of the co-attention; ``type`` defaults to ``CROSS_ATTENTION``.
        ffn_cfg: Arguments of ``mmcv.cnn.bricks.transformer.FFN``.
        spatial_prior_cfg: Config of the prior; ``type`` defaults to ``PRIOR``, channels and heads
            to those of the co-attention. None, in SMCA-DINO only: no prior, and
            ``PlainCoAttention``.
        strides: Stride of every level that the layer attends to, in pixels.
        norm_cfg: Norm layer. Defaults to ``dict(type='LN')``.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If the prior and the co-attention have different numbers of heads.
    """

    CROSS_ATTENTION: str
    PRIOR: str

    def __init__(
        self,
        self_attn_cfg: dict,
        cross_attn_cfg: dict,
        ffn_cfg: dict,
        spatial_prior_cfg: dict | None,
        strides: Sequence[int],
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.strides = tuple(strides)
        self.self_attn = SelfAttention(**self_attn_cfg)
        self.embed_dims = self.self_attn.embed_dims
        attention = self.CROSS_ATTENTION if spatial_prior_cfg is not None else 'PlainCoAttention'
        self.cross_attn = MODELS.build(
            {'type': attention, 'num_levels': len(strides), **cross_attn_cfg}
        )
        self.ffn = FFN(**ffn_cfg)
        norm_cfg = norm_cfg or dict(type='LN')
        self.norms = ModuleList(build_norm_layer(norm_cfg, self.embed_dims)[1] for _ in range(3))
        self.spatial_prior: Any = None
        if spatial_prior_cfg is None:
            return
        heads = self.cross_attn.num_heads
        self.spatial_prior = MODELS.build(
            {
                'type': self.PRIOR,
                'embed_dims': self.embed_dims,
                'num_heads': heads,
                'strides': strides,
                **spatial_prior_cfg,
            }
        )
        if self.spatial_prior.num_heads != heads:
            raise ValueError(
                f'spatial_prior_cfg.num_heads={self.spatial_prior.num_heads} must equal that of '
                f'cross_attn_cfg, {heads}: leave it out'
            )


class ModulatedDecoder(BaseModule):
    """Stack of decoder layers over one or more feature levels.

    Args:
        num_layers: Number of layers.
        strides: Stride of every feature level, in pixels.
        layer_cfg: Config of every layer; ``type`` defaults to ``LAYER``.
        start_levels: Index of the finest level that each layer attends to. Defaults to None: 0 for
            every layer.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If there is no layer, ``strides`` does not list positive integers, or
            ``start_levels`` does not list an existing level for every layer.
    """

    LAYER: str

    def __init__(
        self,
        num_layers: int,
        strides: Sequence[int],
        layer_cfg: dict,
        start_levels: Sequence[int] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_count('decoder.num_layers', num_layers)
        self.num_layers = num_layers
        self.strides = check_strides(strides)
        self.start_levels = (0,) * num_layers if start_levels is None else tuple(start_levels)
        if len(self.start_levels) != num_layers or any(
            start not in range(len(self.strides)) for start in self.start_levels
        ):
            raise ValueError(
                f'decoder.start_levels={list(self.start_levels)} must list a level, 0 to '
                f'{len(self.strides) - 1}, for each of the {num_layers} layers'
            )
        layer_cfg = {'type': self.LAYER, **layer_cfg}
        self.layers = ModuleList(
            MODELS.build({**layer_cfg, 'strides': self.strides[start:]})
            for start in self.start_levels
        )
        self.embed_dims = self.layers[0].embed_dims
