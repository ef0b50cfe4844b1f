"""DINO's decoder with co-attention under priors tied to the boxes that it refines."""

from collections.abc import Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN
from mmdet.models.layers import MLP, coordinate_to_encoding, inverse_sigmoid
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn

from .joint_attention import Cells, place_cells
from .self_attention import SelfAttention
from .values import check_count, check_same_heads, check_strides


@MODELS.register_module()
class SMCADINODecoderLayer(BaseModule):
    """Post-norm decoder layer: self-attention, co-attention under the prior, FFN.

    Configuration keys are those of MMDetection's ``DeformableDetrTransformerDecoderLayer`` and
    ``spatial_prior_cfg``; the state dict is that layer's, with other co-attention, and
    ``spatial_prior``.

    Args:
        self_attn_cfg: Arguments of :class:`SelfAttention`.
        cross_attn_cfg: Config of the co-attention; ``type`` defaults to ``JointCoAttention``.
        ffn_cfg: Arguments of ``mmcv.cnn.bricks.transformer.FFN``.
        spatial_prior_cfg: Config of the prior; ``type`` defaults to ``BoxPrior``, channels and
            heads to those of the co-attention.
        strides: Stride of every level that the layer attends to, in pixels.
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
            {'type': 'JointCoAttention', 'num_levels': len(strides), **cross_attn_cfg}
        )
        self.ffn = FFN(**ffn_cfg)
        norm_cfg = norm_cfg or dict(type='LN')
        self.norms = ModuleList(build_norm_layer(norm_cfg, self.embed_dims)[1] for _ in range(3))
        self.spatial_prior = MODELS.build(
            {
                'type': 'BoxPrior',
                'embed_dims': self.embed_dims,
                'num_heads': self.cross_attn.num_heads,
                'strides': strides,
                **spatial_prior_cfg,
            }
        )
        check_same_heads(self.spatial_prior.num_heads, self.cross_attn.num_heads)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        self_attn_mask: Tensor | None,
        memory: Tensor,
        memory_pos: Tensor,
        cells: Cells,
        boxes: Tensor,
        image_sizes: Tensor,
    ) -> Tensor:
        """Decode one step.

        Args:
            query: (B, Q, C).
            query_pos: Position encoding of the queries, (B, Q, C).
            self_attn_mask: True where a query must not see another, (Q, Q), or None.
            memory: Encoded cells of the layer's levels, one level after the other, (B, N, C).
            memory_pos: Position encoding of the cells, (B, N, C).
            cells: Where the cells are.
            boxes: Boxes (cx, cy, w, h) that the prior is tied to, in [0, 1] of the image content,
                (B, Q, 4).
            image_sizes: Width and height of each image's content, in pixels, (B, 2).

        Returns:
            Tensor of shape (B, Q, C).
        """
        query = self.norms[0](self.self_attn(query, query_pos, attn_mask=self_attn_mask))
        prior = self.spatial_prior(query + query_pos, boxes, image_sizes)
        query = self.norms[1](self.cross_attn(query, query_pos, prior, memory, memory_pos, cells))
        return self.norms[2](self.ffn(query))


@MODELS.register_module()
class SMCADINODecoder(BaseModule):
    """Decoder layers that refine boxes, and look where the boxes are.

    Position encodings of the queries, refinement and the norm are those of MMDetection's
    ``DinoTransformerDecoder``, with its state dict.

    Args:
        num_layers: Number of layers.
        strides: Stride of every feature level, in pixels.
        layer_cfg: Config of every layer; ``type`` defaults to ``SMCADINODecoderLayer``.
        start_levels: Index of the finest level that each layer attends to: 1 leaves out the finest,
            which has three quarters of the cells. Defaults to None: 0 for every layer.
        post_norm_cfg: Kept for the configs of MMDetection's DINO; has to be None.
        return_intermediate: Kept for the configs of MMDetection's DINO; has to be True, as every
            layer's output is trained on.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``return_intermediate`` is False, ``post_norm_cfg`` is not None, there
            is no layer, ``strides`` does not list positive integers, or ``start_levels`` does not
            list an existing level for every layer.
    """

    def __init__(
        self,
        num_layers: int,
        strides: Sequence[int],
        layer_cfg: dict,
        start_levels: Sequence[int] | None = None,
        post_norm_cfg: dict | None = None,
        return_intermediate: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not return_intermediate:
            raise ValueError('decoder.return_intermediate=False: only True is supported')
        if post_norm_cfg is not None:
            raise ValueError('decoder.post_norm_cfg: only None is supported, the norm is LayerNorm')
        check_count('decoder.num_layers', num_layers)
        self.num_layers = num_layers
        self.strides = check_strides(strides)
        self.start_levels = (0,) * num_layers if start_levels is None else tuple(start_levels)
        if len(self.start_levels) != num_layers or any(
            start not in range(len(self.strides)) for start in self.start_levels
        ):
            raise ValueError(
                f'decoder.start_levels={list(self.start_levels)} has to list a level, 0 to '
                f'{len(self.strides) - 1}, for each of the {num_layers} layers'
            )
        layer_cfg = {'type': 'SMCADINODecoderLayer', **layer_cfg}
        self.layers = ModuleList(
            MODELS.build({**layer_cfg, 'strides': self.strides[start:]})
            for start in self.start_levels
        )
        self.embed_dims = self.layers[0].embed_dims
        self.ref_point_head = MLP(self.embed_dims * 4, self.embed_dims, self.embed_dims, 2)
        self.norm = nn.LayerNorm(self.embed_dims)

    def forward(
        self,
        query: Tensor,
        reference_points: Tensor,
        self_attn_mask: Tensor | None,
        memory: Tensor,
        memory_pos: Tensor,
        memory_mask: Tensor | None,
        level_shapes: Sequence[tuple[int, int]],
        image_sizes: Tensor,
        reg_branches: ModuleList,
    ) -> tuple[Tensor, Tensor]:
        """Decode the queries.

        Args:
            query: Initial queries, (B, Q, C).
            reference_points: Their boxes (cx, cy, w, h), in [0, 1] of the image content, (B, Q, 4).
            self_attn_mask: True where a query must not see another, (Q, Q), or None.
            memory: Encoded cells of all levels, one level after the other, (B, N, C).
            memory_pos: Position encoding of the cells, (B, N, C).
            memory_mask: True where a cell is padding, (B, N), or None.
            level_shapes: Height and width of every level, in cells.
            image_sizes: Width and height of each image's content, without padding, in pixels,
                (B, 2).
            reg_branches: The head's box regression of every layer (and of the encoder).

        Returns:
            The layers' normalised outputs, (layers, B, Q, C), and the boxes before the first and
            after every layer, (layers + 1, B, Q, 4).
        """
        num_cells = [height * width for height, width in level_shapes]
        levels = {}
        for start in set(self.start_levels):
            first = sum(num_cells[:start])
            mask = None if memory_mask is None else memory_mask[:, first:]
            cells = place_cells(level_shapes[start:], self.strides[start:], image_sizes, mask)
            levels[start] = memory[:, first:], memory_pos[:, first:], cells
        boxes, hidden_states, references = reference_points, [], [reference_points]
        # The head has another regression, the encoder's, after the layers'.
        for layer, start, reg_branch in zip(
            self.layers, self.start_levels, reg_branches, strict=False
        ):
            encoding = coordinate_to_encoding(boxes, num_feats=self.embed_dims)
            encoding = encoding.type_as(self.norm.weight)
            query = layer(
                query,
                self.ref_point_head(encoding),
                self_attn_mask,
                *levels[start],
                boxes if layer.spatial_prior.refined else reference_points,
                image_sizes,
            )
            refined = (reg_branch(query) + inverse_sigmoid(boxes, eps=1e-3)).sigmoid()
            hidden_states.append(self.norm(query))
            references.append(refined)
            # A layer learns from its own box and from the next layer's, which starts from it (look
            # forward twice), not from where the next layer looks.
            boxes = refined.detach()
        return torch.stack(hidden_states), torch.stack(references)
