"""Intra- and multi-scale encoder (paper, section 3.3); with one level, DETR's encoder."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from mmcv.cnn import build_norm_layer
from mmcv.cnn.bricks.transformer import FFN
from mmdet.registry import MODELS
from mmengine.model import BaseModule, ModuleList
from torch import Tensor

from .memory import Memory
from .self_attention import SelfAttention
from .values import check_count

LAYER_KINDS = ('intra', 'multi')


class LevelEncoder(BaseModule):
    """Interface that detectors expect of every encoder; subclasses implement the encoding.

    Attributes:
        DOUBLING: Whether every level must have twice the stride of the one before.
    """

    DOUBLING = False

    def output_strides(self, strides: Sequence[int]) -> list[int]:
        """Strides of the encoded levels, given those of the neck's maps: the same.

        Raises:
            ValueError: If they have to double from level to level (``DOUBLING``) and do not.
        """
        if self.DOUBLING and any(fine * 2 != coarse for fine, coarse in pairwise(strides)):
            raise ValueError(
                f'encoder.type={type(self).__name__} needs each level to have twice the stride of '
                f'the one before, but model.strides={list(strides)}: choose another encoder, or '
                'other levels by backbone.out_indices'
            )
        return list(strides)


@MODELS.register_module()
class SMCAEncoderLayer(BaseModule):
    """Post-norm encoder layer: self-attention within groups of tokens, FFN.

    In an intra-scale layer each level is a group; a multi-scale layer has one group of all tokens.
    Configuration keys and, with shared weights, the state dict are those of MMDetection's
    ``DetrTransformerEncoderLayer``.

    Args:
        self_attn_cfg: Arguments of :class:`SelfAttention`.
        ffn_cfg: Arguments of ``mmcv.cnn.bricks.transformer.FFN``.
        norm_cfg: Norm layer. Defaults to ``dict(type='LN')``.
        num_attentions: 1, shared by all groups, or one attention per group. Defaults to 1.
        num_ffns: 1, shared by all groups, or one FFN per group. Defaults to 1.
        init_cfg: MMEngine's initialisation config. Defaults to None.
    """

    def __init__(
        self,
        self_attn_cfg: dict,
        ffn_cfg: dict,
        norm_cfg: dict | None = None,
        num_attentions: int = 1,
        num_ffns: int = 1,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.self_attn = _one_or_list(num_attentions, lambda: SelfAttention(**self_attn_cfg))
        self.ffn = _one_or_list(num_ffns, lambda: FFN(**ffn_cfg))
        self.embed_dims = self_attn_cfg['embed_dims']
        norm_cfg = norm_cfg or dict(type='LN')
        self.norms = ModuleList(build_norm_layer(norm_cfg, self.embed_dims)[1] for _ in range(2))

    def forward(
        self,
        tokens: Tensor,
        pos: Tensor,
        padding: Tensor | None,
        group_sizes: Sequence[int],
    ) -> Tensor:
        """Encode the tokens.

        Args:
            tokens: (B, N, C).
            pos: Their position encoding, (B, N, C).
            padding: True where a token is padding, (B, N), or None.
            group_sizes: Number of tokens in each group, N in total.

        Returns:
            Tensor of shape (B, N, C).
        """
        tokens = self.norms[0](_by_group(self.self_attn, group_sizes, tokens, pos, padding))
        if isinstance(self.ffn, ModuleList):
            return self.norms[1](_by_group(self.ffn, group_sizes, tokens))
        return self.norms[1](self.ffn(tokens))


def _one_or_list(count: int, build: Callable[[], BaseModule]) -> BaseModule | ModuleList:
    return build() if count == 1 else ModuleList(build() for _ in range(count))


def _by_group(
    modules: BaseModule | ModuleList, sizes: Sequence[int], *inputs: Tensor | None
) -> Tensor:
    """Apply the shared module, or each group's own, to every group and concatenate the results."""
    own = modules if isinstance(modules, ModuleList) else [modules] * len(sizes)
    groups = [[None] * len(sizes) if x is None else x.split(sizes, dim=1) for x in inputs]
    return torch.cat([m(*group) for m, *group in zip(own, *groups, strict=True)], dim=1)


@MODELS.register_module()
class SMCAEncoder(LevelEncoder):
    """Stack of intra-scale and multi-scale layers, without a norm after the last.

    ``layer_kinds=['intra', 'intra', 'multi', 'intra', 'intra']`` is the paper's
    2Intra-Multi-2Intra. With one level both kinds are the same, and the encoder is DETR's.

    Args:
        num_layers: Number of layers.
        layer_cfg: Arguments of every :class:`SMCAEncoderLayer`.
        layer_kinds: ``intra`` (each level attends to itself) or ``multi`` (all cells attend to
            all), one per layer. Defaults to ``intra`` everywhere.
        num_levels: Number of levels, of the detector's ``strides``. Defaults to 1.
        share_attention: Whether the levels share an intra-scale layer's attention parameters.
            Defaults to True.
        share_ffn: Whether the levels share an intra-scale layer's FFN. Defaults to True.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If there is no layer or no level, or ``layer_kinds`` does not name one known
            kind per layer.
    """

    def __init__(
        self,
        num_layers: int,
        layer_cfg: dict,
        layer_kinds: Sequence[str] | None = None,
        num_levels: int = 1,
        share_attention: bool = True,
        share_ffn: bool = True,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_count('encoder.num_layers', num_layers)
        check_count('encoder.num_levels', num_levels)
        self.layer_kinds = tuple(['intra'] * num_layers if layer_kinds is None else layer_kinds)
        if len(self.layer_kinds) != num_layers or not set(self.layer_kinds) <= set(LAYER_KINDS):
            raise ValueError(
                f'encoder.layer_kinds={layer_kinds} must list one of {list(LAYER_KINDS)} for '
                f'each of the encoder.num_layers={num_layers} layers'
            )
        self.layers = ModuleList()
        for kind in self.layer_kinds:
            groups = num_levels if kind == 'intra' else 1
            self.layers.append(
                SMCAEncoderLayer(
                    **layer_cfg,
                    num_attentions=1 if share_attention else groups,
                    num_ffns=1 if share_ffn else groups,
                )
            )
        self.embed_dims = self.layers[0].embed_dims

    def forward(self, memory: Memory) -> Memory:
        """Encode the tokens of all levels.

        Args:
            memory: The levels, as the neck gives them.

        Returns:
            The encoded tokens, with unchanged positions, padding and shapes.
        """
        tokens, counts = memory.tokens, memory.counts()
        for kind, layer in zip(self.layer_kinds, self.layers, strict=True):
            groups = counts if kind == 'intra' else [sum(counts)]
            tokens = layer(tokens, memory.pos, memory.padding, groups)
        return memory.encoded(tokens)
