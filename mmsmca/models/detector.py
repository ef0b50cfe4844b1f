"""SMCA as an MMDetection detector."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmdet.models.backbones import ResNet
from mmdet.models.detectors import DETR
from mmdet.models.layers import SinePositionalEncoding
from mmdet.models.necks import ChannelMapper
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor, nn


@MODELS.register_module()
class SMCADETR(DETR):
    """Fast Convergence of DETR with Spatially Modulated Co-Attention, arXiv:2101.07448.

    MMDetection's :class:`DETR` with the encoder and the decoder built from the registry (``type``
    defaults to ``SMCAEncoder`` and ``SMCADecoder``). Every map of the neck is a feature level;
    their strides are ``decoder.strides``.

    Raises:
        ValueError: If the position encoding does not fit the channels, or ``decoder.strides`` the
            maps that the backbone and the neck give; at build where their classes tell
            (``ResNet``, ``ChannelMapper``), else in the first forward pass.
    """

    def _init_layers(self) -> None:
        """Build what lies between the neck and the head."""
        self.positional_encoding = SinePositionalEncoding(**self.positional_encoding)
        self.encoder = MODELS.build({'type': 'SMCAEncoder', **self.encoder})
        self.decoder = MODELS.build({'type': 'SMCADecoder', **self.decoder})
        self.embed_dims = self.encoder.embed_dims
        self.query_embedding = nn.Embedding(self.num_queries, self.embed_dims)
        num_feats = self.positional_encoding.num_feats
        if num_feats * 2 != self.embed_dims:
            raise ValueError(
                f'positional_encoding.num_feats={num_feats} has to be half of the '
                f"encoder's embed_dims={self.embed_dims}"
            )
        if isinstance(self.backbone, ResNet) and isinstance(self.neck, ChannelMapper):
            self._check_strides(_neck_strides(self.backbone, self.neck))

    def _check_strides(self, strides: Sequence[int]) -> None:
        if tuple(strides) != self.decoder.strides:
            raise ValueError(
                f'decoder.strides={list(self.decoder.strides)} does not fit the neck, '
                f'whose maps have strides {list(strides)}: set it to these'
            )

    def init_weights(self) -> None:
        """Initialise as DETR does (Xavier); scales of the spatial priors start at 1."""
        super().init_weights()
        for layer in self.decoder.layers:
            layer.spatial_prior.init_scales()

    def pre_transformer(
        self, img_feats: tuple[Tensor, ...], batch_data_samples: SampleList
    ) -> tuple[dict, dict]:
        """Flatten the neck's maps and tell padding from content.

        Args:
            img_feats: Maps of the neck, (B, C, H_j, W_j) each.
            batch_data_samples: Their ``img_shape`` is the size of the image content,
                ``batch_input_shape`` the padded size, (height, width) in pixels.

        Returns:
            Arguments of :meth:`forward_encoder` and of :meth:`forward_decoder`.
        """
        height, width = batch_data_samples[0].batch_input_shape
        shapes = [sample.img_shape[:2] for sample in batch_data_samples]
        level_shapes = [tuple(feat.shape[-2:]) for feat in img_feats]
        expected = [(math.ceil(height / s), math.ceil(width / s)) for s in self.decoder.strides]
        if level_shapes != expected:
            raise ValueError(
                f'decoder.strides={list(self.decoder.strides)} does not fit the neck: an image of '
                f'{height} x {width} pixels gave maps of {level_shapes}, not {expected}'
            )

        mask = img_feats[0].new_ones((len(shapes), 1, height, width))
        for i, (h, w) in enumerate(shapes):
            mask[i, :, :h, :w] = 0
        masks = [F.interpolate(mask, size=shape)[:, 0].bool() for shape in level_shapes]
        pos = [self.positional_encoding(level_mask).to(mask.dtype) for level_mask in masks]

        def flatten(maps: Sequence[Tensor]) -> Tensor:
            return torch.cat([m.flatten(2).transpose(1, 2) for m in maps], dim=1)

        # Attention without a mask is faster: give none where nothing is padded.
        padded = any(shape != (height, width) for shape in shapes)
        feat_mask = torch.cat([m.flatten(1) for m in masks], dim=1) if padded else None
        feat, feat_pos = flatten(img_feats), flatten(pos)
        image_sizes = feat.new_tensor([(w, h) for h, w in shapes])
        encoder_inputs = dict(feat=feat, feat_mask=feat_mask, feat_pos=feat_pos)
        decoder_inputs = dict(
            memory_mask=feat_mask,
            memory_pos=feat_pos,
            level_shapes=level_shapes,
            image_sizes=image_sizes,
        )
        return encoder_inputs, decoder_inputs

    def forward_decoder(self, **decoder_inputs) -> dict:
        """Decode; arguments as in :meth:`SMCADecoder.forward`.

        Returns:
            Arguments of the head: ``hidden_states``, (layers, B, Q, C), and ``references``, the
            logits of the centres, (B, Q, 2).
        """
        hidden_states, references = self.decoder(**decoder_inputs)
        return dict(hidden_states=hidden_states, references=references)


def _neck_strides(backbone: ResNet, neck: ChannelMapper) -> list[int]:
    """Strides of the neck's maps; a ResNet's stem has stride 4, an extra convolution 2."""
    strides = [4 * math.prod(backbone.strides[: i + 1]) for i in backbone.out_indices]
    for _ in neck.extra_convs or ():
        strides.append(strides[-1] * 2)
    return strides
