"""Backbones of the library transformers: ConvNeXt, Swin, HGNetV2, DINOv3 and others."""

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from mmsmca.errors import ConfigError, one_line

# Parameters for other uses of the models, which have no gradient here.
UNUSED = ('mask_token', 'swin.layernorm.weight', 'swin.layernorm.bias')


@MODELS.register_module()
class TransformersBackbone(BaseModule):
    """A backbone of transformers (https://huggingface.co/docs/transformers), by its name.

    The constructor reads the model's configuration; weights are read when training initialises
    them, not when a trained detector is built. Images have to be normalised as the model was
    trained, see :meth:`normalisation`; the checks before training compare it with the config.

    Args:
        model: Name on the hub or folder of a pretrained model, or an architecture (a model type of
            transformers, such as ``convnext``) for random weights.
        out_indices: Stages whose maps are returned, counted from 0, as in MMDetection's ResNet; for
            a plain ViT, its blocks. Defaults to (1, 2, 3): strides 8, 16 and 32 of a hierarchical
            backbone.
        frozen_stages: Number of stages (of a plain ViT: blocks) that are frozen together with the
            stem; 0 freezes the stem alone, -1 nothing. Defaults to -1.
        norm_eval: Whether batch norms, if any, keep their statistics. Defaults to True.
        with_cp: Whether to save memory by activation checkpointing. Defaults to False.
        config: Values that differ from the model's configuration, such as ``drop_path_rate``.
            Defaults to None.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ConfigError: If the extra ``transformers`` is not installed, the model cannot be found or is
            no backbone, or an argument does not fit it.

    Attributes:
        channels: Channels of the returned maps.
        has_windows: Whether attention has windows, as in Swin, to which the model pads its maps.
    """

    def __init__(
        self,
        model: str,
        out_indices: Sequence[int] = (1, 2, 3),
        frozen_stages: int = -1,
        norm_eval: bool = True,
        with_cp: bool = False,
        config: dict | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        try:
            from transformers import CONFIG_MAPPING, AutoBackbone, AutoConfig
        except ModuleNotFoundError as error:
            raise ConfigError(
                "backbone.type='TransformersBackbone' needs transformers: "
                "pip install 'mmsmca[transformers]'"
            ) from error
        self.name = None if model in CONFIG_MAPPING else model
        changes = config or {}
        if self.name is None:
            kind = CONFIG_MAPPING[model]
            known = kind()
            # As if read from a file: some backbones fail on the tuples of their own defaults.
            settings = kind.from_dict(json.loads(kind(**changes).to_json_string(use_diff=False)))
        else:
            try:
                settings = known = AutoConfig.from_pretrained(model, trust_remote_code=False)
            except (OSError, ValueError) as error:  # no folder, no connection, unknown model type
                raise ConfigError(
                    f'backbone.model={model!r} is neither a model type of transformers nor a '
                    f'folder, and cannot be read from the hub ({one_line(error)}). Correct the '
                    'name, or give the folder of a downloaded model.'
                ) from error
        for key, value in changes.items():
            if not hasattr(known, key):
                raise ConfigError(
                    f'backbone.config.{key}: {type(settings).__name__} has no such value'
                )
            setattr(settings, key, value)
        try:
            settings.set_output_features_output_indices(
                out_features=[f'stage{index + 1}' for index in out_indices], out_indices=None
            )
            self.has_windows = hasattr(settings, 'window_size')
            if self.has_windows:
                # Windows are small, and torch.export fails on fused attention under their masks.
                settings._attn_implementation = 'eager'
            self.model = AutoBackbone.from_config(settings)
        except (AttributeError, ValueError) as error:
            raise ConfigError(
                f'backbone.model={model!r} with out_indices={tuple(out_indices)} is no backbone of '
                f'transformers ({one_line(error)})'
            ) from error
        self.channels = list(self.model.channels)
        for name, parameter in self.model.named_parameters():
            if name.endswith(UNUSED):
                parameter.requires_grad_(False)
        for module in self.model.modules():
            if hasattr(module, 'maybe_pad') and hasattr(module, 'window_size'):
                module.maybe_pad = partial(_pad_to_windows, module)
        self.norm_eval = norm_eval
        # Stages of a hierarchical backbone, blocks of a plain ViT: the first list of modules.
        stages = next(m for m in self.model.modules() if isinstance(m, nn.ModuleList))
        if frozen_stages > len(stages):
            raise ConfigError(
                f'backbone.frozen_stages={frozen_stages}: backbone.model={model!r} has '
                f'{len(stages)}'
            )
        if frozen_stages >= 0:
            stem = [
                module
                for name, module in self.model.named_modules()
                if name.split('.')[-1] in ('embeddings', 'embedder')
            ]
            for module in (*stem, *stages[:frozen_stages]):
                module.requires_grad_(False)
        if with_cp:
            for stage in stages:
                stage.forward = partial(_checkpointed, stage, stage.forward)

    def init_weights(self) -> None:
        """Load the pretrained weights, if the model has any.

        Raises:
            ConfigError: If they cannot be read.
        """
        super().init_weights()
        if self.name is None:
            return
        try:
            pretrained = type(self.model).from_pretrained(self.name, config=self.model.config)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f'the weights of backbone.model={self.name!r} cannot be read ({one_line(error)})'
            ) from error
        self.model.load_state_dict(pretrained.state_dict())

    def normalisation(self) -> dict[str, list[float]] | None:
        """Read how images were normalised when the model was pretrained.

        Returns:
            ``mean`` and ``std`` of the RGB channels, in [0, 255], as ``data_preprocessor`` takes
            them; None for random weights, or if the model comes without an image processor.
        """
        if self.name is None:
            return None
        from transformers.image_processing_base import ImageProcessingMixin

        try:
            values, _ = ImageProcessingMixin.get_image_processor_dict(self.name)
        except OSError:
            return None
        if not values.get('do_normalize', True):
            return dict(mean=[0.0] * 3, std=[255.0] * 3)
        if not values.get('image_mean') or not values.get('image_std'):
            return None
        return {key: [255 * x for x in values[f'image_{key}']] for key in ('mean', 'std')}

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Compute the feature maps.

        Args:
            images: (B, 3, H, W).

        Returns:
            One map per index of ``out_indices``, (B, C_j, H_j, W_j) each.
        """
        return tuple(self.model(images).feature_maps)

    def train(self, mode: bool = True) -> 'TransformersBackbone':
        """Set the training mode, except for batch norms that keep their statistics."""
        super().train(mode)
        if self.norm_eval:
            for module in self.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        return self


def _pad_to_windows(
    layer: Any, tokens: torch.Tensor, height: int, width: int
) -> tuple[torch.Tensor, tuple[int, ...]]:
    """Pad a map of tokens, (B, H, W, C), to whole windows, as Swin does.

    The remainders in Swin's own sizes keep torch.export busy for minutes.

    Returns:
        The padded map, and values that make Swin remove the padding, even if there is none.
    """
    side = layer.window_size
    bottom, right = (side * ((cells + side - 1) // side) - cells for cells in (height, width))
    return nn.functional.pad(tokens, (0, 0, 0, right, 0, bottom)), (0, 0, 0, 1, 0, 1)


def _checkpointed(stage: nn.Module, forward: Callable, *args, **kwargs):
    """Compute a stage; in training, its activations are computed again for the backward pass."""
    if not stage.training:
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
