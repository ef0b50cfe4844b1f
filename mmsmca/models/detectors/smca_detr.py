"""SMCA as an MMDetection detector."""

import torch
from mmdet.models.detectors import DETR
from mmdet.models.layers import SinePositionalEncoding
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor, nn

from mmsmca.denormals import flush_denormals
from mmsmca.models.layers.values import check_count

from .levels import OWN_INITIALISATION, level_inputs, neck_strides


@MODELS.register_module()
class SMCADETR(DETR):
    """Fast Convergence of DETR with Spatially Modulated Co-Attention, arXiv:2101.07448.

    MMDetection's :class:`DETR` with the encoder and the decoder built from the registry (``type``
    defaults to ``SMCAEncoder`` and ``SMCADecoder``). Every map of the neck is a feature level;
    their strides are ``decoder.strides``. Once one is built, denormal numbers are zeros on the CPU
    (:mod:`mmsmca.denormals`).

    Raises:
        ValueError: If the position encoding does not fit the channels, or ``decoder.strides`` the
            maps that the backbone and the neck give.
    """

    def __init__(self, *args, **kwargs) -> None:
        # Before anything is built: the first large tensors start PyTorch's threads.
        flush_denormals()
        super().__init__(*args, **kwargs)

    def _init_layers(self) -> None:
        """Build the modules between neck and head."""
        check_count('model.num_queries', self.num_queries)
        # MMDetection's DETR stores the configs under these names first, then the modules.
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
        self.neck_strides = neck_strides(self)

    def init_weights(self) -> None:
        """Initialise as DETR does (Xavier), except for what has an initialisation of its own.

        Scales of the spatial priors start at 1, sampling points as in Deformable DETR, the
        Gaussians of an encoder around their cells.
        """
        super().init_weights()
        for layer in self.decoder.layers:
            layer.spatial_prior.init_scales()
        for module in self.encoder.modules():
            if isinstance(module, OWN_INITIALISATION):
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
        encoder_inputs, image_sizes = level_inputs(
            img_feats,
            batch_data_samples,
            self.neck_strides,
            self.positional_encoding,
            getattr(self, 'level_embed', None),
            like=self.query_embedding.weight,
        )
        return encoder_inputs, dict(image_sizes=image_sizes)

    def forward_encoder(self, **encoder_inputs) -> dict:
        """Encode; arguments as in :meth:`SMCAEncoder.forward`.

        Returns:
            The :class:`.encoder.Memory`, as a dict.
        """
        return self.encoder(**encoder_inputs)._asdict()

    def pre_decoder(self, memory: Tensor, **levels) -> tuple[dict, dict]:
        """Add the queries to the encoder's outputs.

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
            logits of the centres, (B, Q, 2) or (layers, B, Q, 2).
        """
        hidden_states, references = self.decoder(**decoder_inputs, regress=self.bbox_head.regress)
        return dict(hidden_states=hidden_states, references=references)
