"""Backbones of the library transformers: ConvNeXt, Swin, HGNetV2, DINOv3 and others."""

import json
from collections.abc import Callable, Sequence
from functools import partial

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
    trained: ``image_mean`` and ``image_std`` of its ``preprocessor_config.json``, times 255.

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
        if self.name is None:
            # As if read from a file: some backbones fail on the tuples of their own defaults.
            kind = CONFIG_MAPPING[model]
            settings = kind.from_dict(json.loads(kind().to_json_string(use_diff=False)))
        else:
            try:
                settings = AutoConfig.from_pretrained(model)
            except (OSError, ValueError) as error:  # no folder, no connection, unknown model type
                raise ConfigError(
                    f'backbone.model={model!r} is neither a model type of transformers nor a '
                    f'folder, and cannot be read from the hub ({one_line(error)}). Correct the '
                    'name, or give the folder of a downloaded model.'
                ) from error
        for key, value in (config or {}).items():
            if not hasattr(settings, key):
                raise ConfigError(
                    f'backbone.config.{key}: {type(settings).__name__} has no such value'
                )
            setattr(settings, key, value)
        try:
            settings.set_output_features_output_indices(
                out_features=[f'stage{index + 1}' for index in out_indices], out_indices=None
            )
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


def _checkpointed(stage: nn.Module, forward: Callable, *args, **kwargs):
    """Compute a stage; in training, its activations are computed again for the backward pass."""
    if not stage.training:
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, **kwargs)
