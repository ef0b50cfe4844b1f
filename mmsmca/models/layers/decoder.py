"""Transformer decoder with spatially modulated co-attention."""

from collections.abc import Callable, Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.layers import MLP
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor

from .precision import widen
from .self_attention import SelfAttention
from .values import check_count, check_same_heads, check_strides


@MODELS.register_module()
class SMCADecoderLayer(BaseModule):
    """Post-norm decoder layer: spatial prior, self-attention, co-attention, FFN.

    Configuration keys are those of MMDetection's ``DetrTransformerDecoderLayer`` and
    ``spatial_prior_cfg``; the state dict is that layer's and ``spatial_prior``.

    Args:
        self_attn_cfg: Arguments of :class:`SelfAttention`.
        cross_attn_cfg: Config of the co-attention; ``type`` defaults to ``CoAttention``.
        ffn_cfg: Arguments of ``mmcv.cnn.bricks.transformer.FFN``.
        spatial_prior_cfg: Config of the prior; ``type`` defaults to ``SpatialPrior``, channels and
            heads to those of the co-attention.
        strides: Stride of every feature level, in pixels.
        norm_cfg: Norm layer. Defaults to ``dict(type='LN')``.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If the prior has other heads than the co-attention.
    """

    def __init__(
        self,
        self_attn_cfg: dict,
        cross_attn_cfg: dict,
        ffn_cfg: dict,
        spatial_prior_cfg: dict,
        strides: Sequence[int],
        norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.self_attn = SelfAttention(**self_attn_cfg)
        self.embed_dims = self.self_attn.embed_dims
        self.cross_attn = MODELS.build(
            {'type': 'CoAttention', 'num_levels': len(strides), **cross_attn_cfg}
        )
        self.ffn = FFN(**ffn_cfg)
        norm_cfg = norm_cfg or dict(type='LN')
        self.norms = ModuleList(build_norm_layer(norm_cfg, self.embed_dims)[1] for _ in range(3))
        self.spatial_prior = MODELS.build(
            {
                'type': 'SpatialPrior',
                'embed_dims': self.embed_dims,
                'num_heads': self.cross_attn.attn.num_heads,
                'strides': strides,
                **spatial_prior_cfg,
            }
        )
        check_same_heads(self.spatial_prior.num_heads, self.cross_attn.attn.num_heads)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        memory_mask: Tensor | None,
        level_shapes: Sequence[tuple[int, int]],
        centers: Tensor,
        image_sizes: Tensor,
    ) -> Tensor:
        """Decode one step; arguments as in :meth:`SMCADecoder.forward`.

        Args:
            query: (B, Q, C).
            query_pos: Query embedding, (B, Q, C).
            memory: Encoded cells of all levels, one level after the other, (B, N, C).
            memory_pos: Position encoding of the cells, (B, N, C).
            memory_mask: True where a cell is padding, (B, N), or None.
            level_shapes: Height and width of every level, in cells.
            centers: Centres (x, y) of the queries, in [0, 1] of the image content, (B, Q, 2).
            image_sizes: Width and height of each image's content, in pixels, (B, 2).

        Returns:
            Tensor of shape (B, Q, C).
        """
        features = self.spatial_prior.features(query, query_pos)
        priors = self.spatial_prior(features, centers, image_sizes)
        query = self.norms[0](self.self_attn(query, query_pos))
        query = self.cross_attn(
            query, query_pos, features, priors, memory, memory_pos, memory_mask, level_shapes
        )
        return self.norms[2](self.ffn(self.norms[1](query)))


@MODELS.register_module()
class SMCADecoder(BaseModule):
    """Stack of decoder layers over one or more feature levels, and the queries' centres.

    A query's centre is predicted once, from what the first layer sees, and in the paper never
    refined: every layer moves its heads' Gaussians relative to it, and the head predicts boxes
    relative to it. With ``refine``, every layer's box moves the centre for the next layer.

    Args:
        num_layers: Number of layers.
        strides: Stride of every feature level, in pixels: (32,) for C5, (16,) for DC5.
        layer_cfg: Config of every layer; ``type`` defaults to ``SMCADecoderLayer``.
        refine: Whether a layer's Gaussians follow the box of the layer before, as the references of
            Deformable DETR's refinement do; not in the paper. Defaults to False.
        post_norm_cfg: Norm that all layers' outputs share. Defaults to ``dict(type='LN')``.
        return_intermediate: Kept for the configs of MMDetection's DETR; has to be True, as every
            layer's output is trained on.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``return_intermediate`` is False, there is no layer, or ``strides`` does not
            list positive integers.
    """

    def __init__(
        self,
        num_layers: int,
        strides: Sequence[int],
        layer_cfg: dict,
        refine: bool = False,
        post_norm_cfg: dict | None = None,
        return_intermediate: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not return_intermediate:
            raise ValueError('decoder.return_intermediate=False: only True is supported')
        check_count('decoder.num_layers', num_layers)
        self.strides = check_strides(strides)
        self.refine = refine
        layer_cfg = {'type': 'SMCADecoderLayer', 'strides': self.strides, **layer_cfg}
        self.layers = ModuleList(MODELS.build(layer_cfg) for _ in range(num_layers))
        self.embed_dims = self.layers[0].embed_dims
        self.center_head = MLP(self.embed_dims, self.embed_dims, 2, num_layers=3)
        self.post_norm = build_norm_layer(post_norm_cfg or dict(type='LN'), self.embed_dims)[1]

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        memory_mask: Tensor | None,
        level_shapes: Sequence[tuple[int, int]],
        image_sizes: Tensor,
        regress: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode the queries.

        Args:
            query: Initial queries, zeros in DETR, (B, Q, C).
            query_pos: Query embedding, (B, Q, C).
            memory: Encoded cells of all levels, one level after the other, (B, N, C).
            memory_pos: Position encoding of the cells, (B, N, C).
            memory_mask: True where a cell is padding, (B, N), or None.
            level_shapes: Height and width of every level, in cells.
            image_sizes: Width and height of each image's content, without padding, in pixels,
                (B, 2).
            regress: The head's map from a layer's normalised output to logits of boxes relative to
                the centre, (B, Q, C) to (B, Q, 4); needed for ``refine`` only. Defaults to None.

        Returns:
            The layers' normalised outputs, (layers, B, Q, C), and the logits of the centres that
            boxes are relative to, (B, Q, 2), or with ``refine`` (layers, B, Q, 2).
        """
        features = self.layers[0].spatial_prior.features(query, query_pos)
        # Half precision would place a centre a tenth of a cell off, in a map of 40 cells.
        with torch.autocast(features.device.type, enabled=False):
            references = widen(self.center_head(features))
        hidden_states, all_references = [], []
        for layer in self.layers:
            query = layer(
                query,
                query_pos,
                memory,
                memory_pos,
                memory_mask,
                level_shapes,
                references.sigmoid(),
                image_sizes,
            )
            hidden_states.append(self.post_norm(query))
            all_references.append(references)
            if regress is not None and self.refine:
                references = (references + regress(hidden_states[-1])[..., :2]).detach()
        if not self.refine:
            return torch.stack(hidden_states), references
        return torch.stack(hidden_states), torch.stack(all_references)
