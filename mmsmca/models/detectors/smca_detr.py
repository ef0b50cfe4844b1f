"""SMCA as an MMDetection detector."""

import math
from collections.abc import Sequence

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.backbones import ResNet
from mmdet.models.detectors import DETR
from mmdet.models.layers import SinePositionalEncoding
from mmdet.models.necks import ChannelMapper
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor, nn

from mmsmca.denormals import flush_denormals
from mmsmca.models.layers.encoder import flatten_levels


@MODELS.register_module()
class SMCADETR(DETR):
    """Fast Convergence of DETR with Spatially Modulated Co-Attention, arXiv:2101.07448.

    MMDetection's :class:`DETR` with the encoder and the decoder built from the registry (``type``
    defaults to ``SMCAEncoder`` and ``SMCADecoder``). Every map of the neck is a feature level;
    their strides are ``decoder.strides``. Once one is built, denormal numbers are zeros on the CPU
    (:mod:`mmsmca.denormals`).

    Raises:
        ValueError: If the position encoding does not fit the channels, or ``decoder.strides`` the
            maps that the backbone and the neck give; at build where their classes tell
            (``ResNet``, ``ChannelMapper``), else in the first forward pass.
    """

    def __init__(self, *args, **kwargs) -> None:
        # Before anything of it is built: the first large tensors start PyTorch's threads.
        flush_denormals()
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        """Build what lies between the neck and the head."""
        # Under these names MMDetection's DETR keeps the configs first, then the modules.
        encoding, encoder, decoder = self.positional_encoding, self.encoder, self.decoder  # type: ignore[has-type]
        self.positional_encoding = SinePositionalEncoding(**encoding)
        self.encoder = MODELS.build({'type': 'SMCAEncoder', **encoder})
        self.decoder = MODELS.build({'type': 'SMCADecoder', **decoder})
        self.embed_dims = self.encoder.embed_dims
        self.query_embedding = nn.Embedding(self.num_queries, self.embed_dims)
        num_feats = self.positional_encoding.num_feats
        if num_feats * 2 != self.embed_dims:
            raise ValueError(
                f'positional_encoding.num_feats={num_feats} has to be half of the '
                f"encoder's embed_dims={self.embed_dims}"
            )
        if len(self.decoder.strides) > 1:
            self.level_embed = nn.Parameter(torch.randn(len(self.decoder.strides), self.embed_dims))
        self.neck_strides = self.encoder.input_strides(self.decoder.strides)
        if isinstance(self.backbone, ResNet) and isinstance(self.neck, ChannelMapper):
            self._check_strides(_neck_strides(self.backbone, self.neck))

    def _check_strides(self, neck_strides: Sequence[int]) -> None:
        strides = self.encoder.output_strides(neck_strides)
        if tuple(strides) != self.decoder.strides:
            raise ValueError(
                f'decoder.strides={list(self.decoder.strides)} does not fit the encoded levels, '
                f'which have strides {strides}: set it to these'
            )

    def init_weights(self) -> None:
        """Initialise as DETR does (Xavier), except for what has an initialisation of its own.

        Scales of the spatial priors start at 1, sampling points as in Deformable DETR.
        """
        super().init_weights()
        for layer in self.decoder.layers:
            layer.spatial_prior.init_scales()
        for module in self.encoder.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.init_weights()

    def pre_transformer(
        self, img_feats: tuple[Tensor, ...], batch_data_samples: SampleList
    ) -> tuple[dict, dict]:
        """Flatten the neck's maps and tell padding from content.

        Args:
            img_feats: Maps of the neck, (B, C, H_j, W_j) each.
            batch_data_samples: Their ``img_shape`` is the size of the image content,
                ``batch_input_shape`` the padded size, (height, width) in pixels.

        Returns:
            Arguments of the encoder, and those of the decoder that do not come from the encoder.
        """
        height, width = batch_data_samples[0].batch_input_shape
        shapes = [sample.img_shape[:2] for sample in batch_data_samples]
        level_shapes = [(feat.shape[-2], feat.shape[-1]) for feat in img_feats]
        self._check_level_shapes(level_shapes, (height, width))
        # Not of the maps' precision: bfloat16 would round an image of 1333 pixels to 1336.
        like = self.query_embedding.weight
        masks = []
        for shape, stride in zip(level_shapes, self.neck_strides, strict=True):
            mask = like.new_ones((len(shapes), *shape), dtype=torch.bool)
            for i, (h, w) in enumerate(shapes):
                # As many cells as the image has alone; interpolating a mask of the pixels, as DETR
                # does, often gives one more where the stride does not divide the padded size.
                mask[i, : math.ceil(h / stride), : math.ceil(w / stride)] = False
            masks.append(mask)
        pos = [self.positional_encoding(level_mask).to(like.dtype) for level_mask in masks]
        if len(pos) > 1:
            pos = [p + e[:, None, None] for p, e in zip(pos, self.level_embed, strict=True)]

        # Attention without a mask is faster: give none where nothing is padded.
        padded = any(shape != (height, width) for shape in shapes)
        encoder_inputs = dict(
            feat=flatten_levels(img_feats),
            feat_pos=flatten_levels(pos),
            feat_mask=torch.cat([m.flatten(1) for m in masks], dim=1) if padded else None,
            level_shapes=level_shapes,
        )
        return encoder_inputs, dict(image_sizes=like.new_tensor([(w, h) for h, w in shapes]))

    def _check_level_shapes(
        self, level_shapes: Sequence[tuple[int, int]], padded_size: tuple[int, int]
    ) -> None:
        expected = [
            tuple(math.ceil(side / stride) for side in padded_size) for stride in self.neck_strides
        ]
        if level_shapes != expected:
            raise ValueError(
                f'decoder.strides={list(self.decoder.strides)} does not fit the neck: for an '
                f'image of {padded_size[0]} x {padded_size[1]} pixels it gave maps of '
                f'{level_shapes}, not {expected}'
            )

    def forward_encoder(self, **encoder_inputs) -> dict:
        """Encode; arguments as in :meth:`SMCAEncoder.forward`.

        Returns:
            The :class:`.encoder.Memory`, as a dict.
        """
        return self.encoder(**encoder_inputs)._asdict()

    def pre_decoder(self, memory: Tensor, **levels) -> tuple[dict, dict]:
        """Add the queries to what the encoder gave.

        Args:
            memory: Encoded cells, (B, N, C).
            levels: The rest of the :class:`.encoder.Memory`.

        Returns:
            Arguments of :meth:`forward_decoder`, and of the head: none.
        """
        decoder_inputs, head_inputs = super().pre_decoder(memory)
        return dict(decoder_inputs, **levels), head_inputs

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
