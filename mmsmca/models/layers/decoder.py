"""Transformer decoder with spatially modulated co-attention."""

from collections.abc import Callable, Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmdet.models.layers import MLP
from mmdet.registry import MODELS
from torch import Tensor

from .attention import Grid, level_grids
from .memory import Memory
from .modulated_decoder import ModulatedDecoder, ModulatedDecoderLayer
from .precision import at_least_float32


@MODELS.register_module()
class SMCADecoderLayer(ModulatedDecoderLayer):
    """Decoder layer of SMCA: the prior is predicted before the self-attention.

    Arguments are those of :class:`.ModulatedDecoderLayer`; config keys follow MMDetection's
    ``DetrTransformerDecoderLayer``. ``cross_attn_cfg.type`` defaults to ``CoAttention``,
    ``spatial_prior_cfg.type`` to ``SpatialPrior``.
    """

    CROSS_ATTENTION = 'CoAttention'
    PRIOR = 'SpatialPrior'

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key: Tensor,
        value: Tensor,
        grids: Sequence[Grid],
        centers: Tensor,
        image_sizes: Tensor,
    ) -> Tensor:
        """Decode one step.

        Args:
            query: (B, Q, C).
            query_pos: Query embedding, (B, Q, C).
            key: Tokens of all levels, concatenated, plus their position encoding, (B, N, C).
            value: The same tokens without position encoding, (B, N, C).
            grids: The cells of every level.
            centers: Centres (x, y) of the queries, in [0, 1] of the image content, (B, Q, 2).
            image_sizes: Width and height of each image's content, in pixels, (B, 2).

        Returns:
            Tensor of shape (B, Q, C).
        """
        features = self.spatial_prior.features(query, query_pos)
        priors = self.spatial_prior(features, centers, image_sizes)
        query = self.norms[0](self.self_attn(query, query_pos))
        query = self.cross_attn(query, query_pos, key, value, priors, grids, features)
        return self.norms[2](self.ffn(self.norms[1](query)))


@MODELS.register_module()
class SMCADecoder(ModulatedDecoder):
    """Stack of decoder layers over one or more feature levels, with prediction of the centres.

    A query's centre is predicted once, from the input of the first layer. The paper never refines
    it: every layer places its heads' Gaussians relative to it, and the head predicts boxes relative
    to it. With ``refine``, every layer's box moves the centre for the next layer.

    Args:
        num_layers: Number of layers.
        strides: Stride of every feature level, in pixels: (32,) for C5, (16,) for DC5.
        layer_cfg: Config of every layer; ``type`` defaults to ``SMCADecoderLayer``.
        refine: Whether a layer's Gaussians follow the previous layer's box, as reference points do
            in Deformable DETR's box refinement; not in the paper. Defaults to False.
        post_norm_cfg: Norm shared by the outputs of all layers. Defaults to ``dict(type='LN')``.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If the layers have no spatial prior.
    """

    LAYER = 'SMCADecoderLayer'

    def __init__(
        self,
        num_layers: int,
        strides: Sequence[int],
        layer_cfg: dict,
        refine: bool = False,
        post_norm_cfg: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(num_layers, strides, layer_cfg, init_cfg=init_cfg)
        if any(layer.spatial_prior is None for layer in self.layers):
            raise ValueError(
                'decoder.layer_cfg.spatial_prior_cfg=None: only SMCA-DINO works without a prior'
            )
        self.refine = refine
        self.center_head = MLP(self.embed_dims, self.embed_dims, 2, num_layers=3)
        self.post_norm = build_norm_layer(post_norm_cfg or dict(type='LN'), self.embed_dims)[1]

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Memory,
        image_sizes: Tensor,
        regress: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Decode the queries.

        Args:
            query: Initial queries, zeros in DETR, (B, Q, C).
            query_pos: Query embedding, (B, Q, C).
            memory: The encoded levels.
            image_sizes: Width and height of each image's content, without padding, in pixels,
                (B, 2).
            regress: The head's regression from a layer's normalised output, (B, Q, C), to box
                logits relative to the centre, (B, Q, 4); used only by ``refine``. Defaults to None.

        Returns:
            The layers' normalised outputs, (layers, B, Q, C), and the logits of the centres that
            their boxes are relative to, (layers, B, Q, 2).
        """
        # The first layer computes them again: a norm costs less than an argument of every layer.
        features = self.layers[0].spatial_prior.features(query, query_pos)
        # Half precision would shift a centre by a tenth of a cell on a map of 40 cells.
        with torch.autocast(features.device.type, enabled=False):
            references = at_least_float32(self.center_head(features))
        grids = level_grids(memory.shapes, memory.padding, image_sizes)
        # Activation checkpointing needs tensors with gradients as separate arguments.
        levels = memory.keys(), memory.tokens, grids
        hidden_states, all_references = [], []
        for layer in self.layers:
            query = layer(query, query_pos, *levels, references.sigmoid(), image_sizes)
            hidden_states.append(self.post_norm(query))
            all_references.append(references)
            if regress is not None and self.refine:
                references = (references + regress(hidden_states[-1])[..., :2]).detach()
        return torch.stack(hidden_states), torch.stack(all_references)
