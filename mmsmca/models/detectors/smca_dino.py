"""SMCA's prior under DINO's training."""

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.detectors import DINO, DeformableDETR
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmdet.models.layers import CdnQueryGenerator, SinePositionalEncoding
from mmdet.registry import MODELS
from mmdet.structures import OptSampleList, SampleList
from torch import Tensor, nn

from .levels import level_inputs, neck_strides


@MODELS.register_module()
class SMCADINO(DINO):
    def __init__(self, *args, dn_cfg: dict | None = None, as_two_stage: bool = True, **kwargs) -> None:
        # DINO's own constructor insists on two stages and on denoising.
        DeformableDETR.__init__(
            self, *args, as_two_stage=as_two_stage, **kwargs
        )
        self.dn_query_generator = None
        if dn_cfg is not None:
            self.dn_query_generator = CdnQueryGenerator(
                num_classes=self.bbox_head.num_classes,
                embed_dims=self.embed_dims,
                num_matching_queries=self.num_queries,
                **dn_cfg,
            )

    def _init_layers(self) -> None:
        encoding, encoder, decoder = self.positional_encoding, self.encoder, self.decoder
        self.positional_encoding = SinePositionalEncoding(**encoding)
        self.encoder = MODELS.build({'type': 'SMCAHybridEncoder', **encoder})
        self.decoder = MODELS.build({'type': 'SMCADINODecoder', **decoder})
        self.embed_dims = self.encoder.embed_dims
        self.query_embedding = nn.Embedding(self.num_queries, self.embed_dims)
        self.level_embed = nn.Parameter(
            torch.empty(len(self.decoder.strides), self.embed_dims)
        )
        if self.as_two_stage:
            self.memory_trans_fc = nn.Linear(self.embed_dims, self.embed_dims)
            self.memory_trans_norm = nn.LayerNorm(self.embed_dims)
        else:
            self.query_boxes = nn.Embedding(self.num_queries, 4)
        self.neck_strides = neck_strides(
            self.backbone, self.neck, self.encoder, self.decoder.strides
        )

    def init_weights(self) -> None:
        DetectionTransformer.init_weights(self)
        for coder in self.encoder, self.decoder:
            for p in coder.parameters():
                if p.dim() > 1:
                    nn.init.xavier_uniform_(p)
        for module in self.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.init_weights()
        for layer in self.decoder.layers:
            layer.spatial_prior.init_weights()
            layer.cross_attn.init_weights()
        nn.init.xavier_uniform_(self.query_embedding.weight)
        nn.init.normal_(self.level_embed)
        if self.as_two_stage:
            nn.init.xavier_uniform_(self.memory_trans_fc.weight)
        else:
            nn.init.uniform_(self.query_boxes.weight[:, :2])
            self.query_boxes.weight.data[:, :2].logit_(eps=1e-3)
            nn.init.constant_(self.query_boxes.weight[:, 2:], -2.0)

    def pre_transformer(self, img_feats, batch_data_samples: OptSampleList = None):
        encoder_inputs, image_sizes = level_inputs(
            img_feats,
            batch_data_samples,
            self.neck_strides,
            self.positional_encoding,
            self.level_embed,
            like=self.level_embed,
        )
        return encoder_inputs, dict(image_sizes=image_sizes)

    def forward_encoder(self, **encoder_inputs) -> dict:
        return self.encoder(**encoder_inputs)._asdict()

    def pre_decoder(
        self, memory, memory_pos, memory_mask, level_shapes, batch_data_samples=None
    ):
        decoder_inputs, head_inputs = super().pre_decoder(
            memory, memory_mask, level_shapes, batch_data_samples
        )
        decoder_inputs.update(
            memory_pos=memory_pos, memory_mask=memory_mask, level_shapes=level_shapes
        )
        return decoder_inputs, head_inputs

    def forward_decoder(self, dn_mask: Tensor | None = None, **decoder_inputs) -> dict:
        hidden_states, references = self.decoder(
            self_attn_mask=dn_mask, reg_branches=self.bbox_head.reg_branches, **decoder_inputs
        )
        return dict(hidden_states=hidden_states, references=list(references))
