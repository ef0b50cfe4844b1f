"""Feature levels between neck and decoder, shared by the detectors of SMCA and SMCA-DINO."""

import math
from collections.abc import Callable, Sequence

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmdet.models.layers import SinePositionalEncoding
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor, nn

from mmsmca.denormals import flush_denormals
from mmsmca.models.layers.memory import Memory, flatten_levels
from mmsmca.models.layers.precision import at_least_float32
from mmsmca.models.layers.values import check_count, check_strides


class LevelDetector(DetectionTransformer):
    """Mixin, placed before an MMDetection DETR, that makes each map of the neck a feature level.

    The encoder and the decoder are built from the registry, for as many levels as there are
    strides.

    Args:
        args: Positional arguments of MMDetection's detector.
        strides: Strides of the neck's maps, in pixels. The first batch is checked against them.
        kwargs: Keyword arguments of MMDetection's detector.

    Attributes:
        BASE: MMDetection's detector.
        ENCODER: Default of ``encoder.type``.
        DECODER: Default of ``decoder.type``.
        EMBEDS_ONE_LEVEL: Whether to learn a level embedding even for a single level.

    Raises:
        ValueError: If there is no query, ``strides`` does not list positive integers or does not
            suit the encoder, or the position encoding does not fit the channels.
    """

    BASE: type[DetectionTransformer]
    ENCODER: str
    DECODER: str
    EMBEDS_ONE_LEVEL = False

    def __init__(self, *args, strides: Sequence[int], **kwargs) -> None:
        # Before the first large tensors start PyTorch's threads, which inherit the setting.
        flush_denormals()
        self.strides = check_strides(strides)
        self.BASE.__init__(self, *args, **kwargs)

    def _init_layers(self) -> None:
        """Build the modules between the neck and the head."""
        check_count('model.num_queries', self.num_queries)
        # MMDetection uses these attributes for the configs first, then for the modules.
        encoding, encoder, decoder = self.positional_encoding, self.encoder, self.decoder  # type: ignore[has-type]
        for key, cfg in (('encoder.num_levels', encoder), ('decoder.strides', decoder)):
            if key.split('.')[1] in cfg:
                raise ValueError(f'{key}: leave it out; model.strides={list(self.strides)} says it')
        self.positional_encoding = SinePositionalEncoding(**encoding)
        num_levels = len(self.strides)
        self.encoder = MODELS.build({'type': self.ENCODER, 'num_levels': num_levels, **encoder})
        strides = self.encoder.output_strides(self.strides)
        self.decoder = MODELS.build({'type': self.DECODER, 'strides': strides, **decoder})
        self.embed_dims = self.encoder.embed_dims
        num_feats = self.positional_encoding.num_feats
        if num_feats * 2 != self.embed_dims:
            raise ValueError(
                f'positional_encoding.num_feats={num_feats} must be half of the '
                f"encoder's embed_dims={self.embed_dims}"
            )
        self.query_embedding = nn.Embedding(self.num_queries, self.embed_dims)
        if num_levels > 1 or self.EMBEDS_ONE_LEVEL:
            self.level_embed = nn.Parameter(torch.randn(num_levels, self.embed_dims))

    def init_weights(self) -> None:
        """Initialise like MMDetection's DETRs (Xavier), with a few exceptions.

        Spatial priors and the attention of Deformable DETR's encoder keep their own.
        """
        DetectionTransformer.init_weights(self)
        for coder in self.encoder, self.decoder:
            for p in coder.parameters():
                if p.dim() > 1:
                    nn.init.xavier_uniform_(p)
        for module in self.encoder.modules():
            if isinstance(module, MultiScaleDeformableAttention):
                module.init_weights()
        for layer in self.decoder.layers:
            if layer.spatial_prior is not None:
                layer.spatial_prior.init_weights()

    def pre_transformer(
        self, img_feats: tuple[Tensor, ...], batch_data_samples: SampleList
    ) -> tuple[dict, dict]:
        """Flatten the neck's maps and find their padding.

        Args:
            img_feats: Maps of the neck, (B, C, H_j, W_j) each.
            batch_data_samples: Samples whose ``img_shape`` is the size of the image content and
                ``batch_input_shape`` the padded size, (height, width) in pixels.

        Returns:
            Arguments of the encoder: ``memory``, the levels. Arguments of the decoder that do not
            come from the encoder: ``image_sizes``, width and height of each image's content, in
            pixels, (B, 2), at least in float32, as bfloat16 would round 1333 pixels to 1336.

        Raises:
            ValueError: If the sizes of the maps do not match the strides.
        """
        padded_size = tuple(batch_data_samples[0].batch_input_shape)
        sizes = [sample.img_shape[:2] for sample in batch_data_samples]
        shapes = [(x.shape[-2], x.shape[-1]) for x in img_feats]
        _check_maps(shapes, padded_size, self.strides)
        like = self.query_embedding.weight
        padding = []
        for shape, stride in zip(shapes, self.strides, strict=True):
            beyond = like.new_ones((len(sizes), *shape), dtype=torch.bool)
            for i, (h, w) in enumerate(sizes):
                # As many cells as without padding. Interpolating a pixel mask, as DETR does, often
                # gives one more if the stride does not divide the padded size.
                beyond[i, : math.ceil(h / stride), : math.ceil(w / stride)] = False
            padding.append(beyond)
        memory = self.flatten_maps(img_feats, padding)
        # Attention is faster without a mask, so pass none if nothing is padded.
        if all(size == padded_size for size in sizes):
            memory = memory._replace(padding=None)
        image_sizes = at_least_float32(like).new_tensor([(w, h) for h, w in sizes])
        return dict(memory=memory), dict(image_sizes=image_sizes)

    def flatten_maps(self, maps: Sequence[Tensor], padding: Sequence[Tensor]) -> Memory:
        """Flatten the neck's maps into one sequence of cells, with position encodings.

        Args:
            maps: Maps of the neck, (B, C, H_j, W_j) each.
            padding: True where a cell is padding, (B, H_j, W_j) each.
        """
        dtype = self.query_embedding.weight.dtype
        pos = [self.positional_encoding(beyond).to(dtype) for beyond in padding]
        if hasattr(self, 'level_embed'):
            pos = [p + e[:, None, None] for p, e in zip(pos, self.level_embed, strict=True)]
        return Memory(
            flatten_levels(maps),
            flatten_levels(pos),
            torch.cat([beyond.flatten(1) for beyond in padding], dim=1),
            [(x.shape[-2], x.shape[-1]) for x in maps],
        )

    def forward_encoder(self, memory: Memory) -> dict:
        """Encode the levels.

        Returns:
            Arguments of :meth:`pre_decoder`: ``memory``, the encoded levels.
        """
        return dict(memory=self.encoder(memory))


def _check_maps(
    shapes: Sequence[tuple[int, int]], padded_size: tuple[int, int], strides: Sequence[int]
) -> None:
    """Raise a ValueError if the neck's maps do not have the configured strides."""

    def expected(strides: Sequence[int], rounded: Callable = math.ceil) -> list[tuple[int, int]]:
        return [(rounded(padded_size[0] / s), rounded(padded_size[1] / s)) for s in strides]

    if shapes == expected(strides):
        return
    remedy = ''
    measured = [2 ** round(math.log2(max(padded_size) / max(shape))) for shape in shapes]
    if shapes == expected(strides, math.floor):
        remedy = (
            '. The backbone rounds sizes down: set '
            f'model.data_preprocessor.pad_size_divisor={math.lcm(*strides)}'
        )
    elif shapes == expected(measured):
        remedy = f'. Set it to {measured}'
    raise ValueError(
        f'model.strides={list(strides)} does not fit the neck: for an image of {padded_size[0]} x '
        f'{padded_size[1]} pixels it gave maps of {shapes}, not {expected(strides)}{remedy}'
    )
