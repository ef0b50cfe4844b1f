"""DINO's decoder with co-attention under priors tied to the boxes that it refines."""

from collections.abc import Sequence

import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN, MultiheadAttention
from mmdet.models.layers import MLP, coordinate_to_encoding, inverse_sigmoid
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor, nn


@MODELS.register_module()
class SMCADINODecoderLayer(BaseModule):
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
        self.strides = tuple(strides)
        self.self_attn = MultiheadAttention(**{'batch_first': True, **self_attn_cfg})
        self.embed_dims = self.self_attn.embed_dims
        self.cross_attn = MODELS.build({'type': 'JointCoAttention', **cross_attn_cfg})
        self.ffn = FFN(**ffn_cfg)
        norm_cfg = norm_cfg or dict(type='LN')
        self.norms = ModuleList(build_norm_layer(norm_cfg, self.embed_dims)[1] for _ in range(3))
        self.spatial_prior = MODELS.build(
            {
                'type': 'BoxPrior',
                'embed_dims': self.embed_dims,
                'num_heads': self.cross_attn.attn.num_heads,
                'strides': strides,
                **spatial_prior_cfg,
            }
        )

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        memory_mask: Tensor | None,
        level_shapes: Sequence[tuple[int, int]],
        boxes: Tensor,
        image_sizes: Tensor,
        self_attn_mask: Tensor | None,
    ) -> Tensor:
        query = self.norms[0](
            self.self_attn(query, query_pos=query_pos, key_pos=query_pos, attn_mask=self_attn_mask)
        )
        prior = self.spatial_prior(query + query_pos, boxes, image_sizes)
        query = self.cross_attn(
            query,
            query_pos,
            prior,
            memory,
            memory_pos,
            memory_mask,
            level_shapes,
            self.strides,
        )
        return self.norms[2](self.ffn(self.norms[1](query)))


@MODELS.register_module()
class SMCADINODecoder(BaseModule):
    def __init__(
        self,
        num_layers: int,
        strides: Sequence[int],
        layer_cfg: dict,
        post_norm_cfg: None = None,
        return_intermediate: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        if not return_intermediate:
            raise ValueError('decoder.return_intermediate=False: only True is supported')
        self.num_layers = num_layers
        self.strides = tuple(strides)
        layer_cfg = {'type': 'SMCADINODecoderLayer', 'strides': self.strides, **layer_cfg}
        self.layers = ModuleList(MODELS.build(layer_cfg) for _ in range(num_layers))
        self.embed_dims = self.layers[0].embed_dims
        self.ref_point_head = MLP(self.embed_dims * 4, self.embed_dims, self.embed_dims, 2)
        self.norm = nn.LayerNorm(self.embed_dims)

    def forward(
        self,
        query: Tensor,
        memory: Tensor,
        memory_pos: Tensor,
        memory_mask: Tensor | None,
        level_shapes: Sequence[tuple[int, int]],
        reference_points: Tensor,
        image_sizes: Tensor,
        reg_branches: ModuleList,
        self_attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        hidden_states, references = [], [reference_points]
        for layer, reg_branch in zip(self.layers, reg_branches, strict=False):
            encoding = coordinate_to_encoding(reference_points, num_feats=self.embed_dims)
            query = layer(
                query,
                self.ref_point_head(encoding),
                memory,
                memory_pos,
                memory_mask,
                level_shapes,
                reference_points,
                image_sizes,
                self_attn_mask,
            )
            refined = (reg_branch(query) + inverse_sigmoid(reference_points, eps=1e-3)).sigmoid()
            hidden_states.append(self.norm(query))
            references.append(refined)
            # The loss reaches a layer through its own box and the next layer's (look forward
            # twice), not through where the next layer looks.
            reference_points = refined.detach()
        return torch.stack(hidden_states), torch.stack(references)
