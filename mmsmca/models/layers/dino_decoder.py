"""DINO's decoder with co-attention under priors tied to the boxes that it refines."""

from collections.abc import Sequence

import torch
from mmdet.models.layers import MLP, coordinate_to_encoding, inverse_sigmoid
from mmdet.registry import MODELS
from mmengine.model import ModuleList
from torch import Tensor, nn

from .attention import Grid, common_grid
from .memory import Memory
from .modulated_decoder import ModulatedDecoder, ModulatedDecoderLayer
from .static_prior import StaticPrior


@MODELS.register_module()
class SMCADINODecoderLayer(ModulatedDecoderLayer):
    """Decoder layer of SMCA-DINO: the prior follows the self-attention and is tied to a box.

    Arguments are those of :class:`.ModulatedDecoderLayer`; config keys follow MMDetection's
    ``DeformableDetrTransformerDecoderLayer``. ``cross_attn_cfg.type`` defaults to
    ``AllLevelsCoAttention``, ``spatial_prior_cfg.type`` to ``BoxPrior``.
    """

    CROSS_ATTENTION = 'AllLevelsCoAttention'
    PRIOR = 'BoxPrior'

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key: Tensor,
        value: Tensor,
        grid: Grid,
        boxes: Tensor,
        image_sizes: Tensor,
        self_attn_mask: Tensor | None = None,
    ) -> Tensor:
        """Decode one step.

        Args:
            query: (B, Q, C).
            query_pos: Position encoding of the queries, (B, Q, C).
            key: Tokens of the layer's levels plus their position encoding, (B, N, C).
            value: The same tokens without position encoding, (B, N, C).
            grid: The cells of these levels.
            boxes: Boxes (cx, cy, w, h) that the prior is tied to, in [0, 1] of the image content,
                (B, Q, 4).
            image_sizes: Width and height of each image's content, in pixels, (B, 2).
            self_attn_mask: True where a query must not see another, (Q, Q). Defaults to None.

        Returns:
            Tensor of shape (B, Q, C).
        """
        query = self.norms[0](self.self_attn(query, query_pos, attn_mask=self_attn_mask))
        prior = None
        if self.spatial_prior is not None:
            prior = self.spatial_prior(query + query_pos, boxes, image_sizes)
        query = self.norms[1](self.cross_attn(query, query_pos, key, value, prior, grid))
        return self.norms[2](self.ffn(query))


@MODELS.register_module()
class SMCADINODecoder(ModulatedDecoder):
    """Stack of decoder layers that refine boxes and attend around them.

    Query position encodings, box refinement and norm are those of MMDetection's
    ``DinoTransformerDecoder``, including the state dict.

    Args:
        num_layers: Number of layers.
        strides: Stride of every feature level, in pixels.
        layer_cfg: Config of every layer; ``type`` defaults to ``SMCADINODecoderLayer``.
        start_levels: Index of the finest level that each layer attends to: 1 leaves out level 0,
            which has three quarters of the cells. Defaults to None: 0 for every layer.
        init_cfg: MMEngine's initialisation config. Defaults to None.
    """

    LAYER = 'SMCADINODecoderLayer'

    def __init__(
        self,
        num_layers: int,
        strides: Sequence[int],
        layer_cfg: dict,
        start_levels: Sequence[int] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(num_layers, strides, layer_cfg, start_levels, init_cfg)
        self.ref_point_head = MLP(self.embed_dims * 4, self.embed_dims, self.embed_dims, 2)
        self.norm = nn.LayerNorm(self.embed_dims)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        self_attn_mask: Tensor | None,
        memory: Memory,
        image_sizes: Tensor,
        reg_branches: ModuleList,
    ) -> tuple[Tensor, Tensor]:
        """Decode the queries.

        Args:
            query: Initial queries, (B, Q, C).
            reference_points: Their boxes (cx, cy, w, h) in [0, 1] of the image content, (B, Q, 4).
            self_attn_mask: True where a query must not see another, (Q, Q), or None.
            memory: The encoded levels.
            image_sizes: Width and height of each image's content, without padding, in pixels,
                (B, 2).
            reg_branches: The head's regression branches, one per layer (and one for the encoder).

        Returns:
            The layers' normalised outputs, (layers, B, Q, C), and the boxes before the first and
            after every layer, (layers + 1, B, Q, 4).
        """
        levels_from = {}
        for start in set(self.start_levels):
            part = memory.from_level(start)
            grid = common_grid(part.shapes, self.strides[start:], image_sizes, part.padding)
            # Activation checkpointing needs tensors with gradients as separate arguments.
            levels_from[start] = part.keys(), part.tokens, grid
        boxes, hidden_states, references = reference_points, [], [reference_points]
        # The head's last regression branch is the encoder's and not used here.
        for layer, start, reg_branch in zip(
            self.layers, self.start_levels, reg_branches, strict=False
        ):
            encoding = coordinate_to_encoding(boxes, num_feats=self.embed_dims)
            encoding = encoding.type_as(self.norm.weight)
            query = layer(
                query,
                self.ref_point_head(encoding),
                *levels_from[start],
                reference_points if isinstance(layer.spatial_prior, StaticPrior) else boxes,
                image_sizes,
                self_attn_mask,
            )
            refined = (reg_branch(query) + inverse_sigmoid(boxes, eps=1e-3)).sigmoid()
            hidden_states.append(self.norm(query))
            references.append(refined)
            # Look forward twice: gradients reach a layer from its own box and from the next layer's
            # box, which starts from it, but not through the next layer's prior.
            boxes = refined.detach()
        return torch.stack(hidden_states), torch.stack(references)
