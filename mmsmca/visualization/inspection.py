"""What the co-attention of a detector does with an image, read off a forward pass from outside."""

import inspect
import math
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.apis import init_detector
from mmdet.models.detectors import DetectionTransformer
from mmdet.models.layers import DetrTransformerDecoderLayer
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps
from mmdet.utils import get_test_pipeline_cfg
from torch import Tensor, nn

from mmsmca.checks import preflight
from mmsmca.checks.load_image import naming_images
from mmsmca.errors import ConfigError, DataError, UserError
from mmsmca.models.layers.box_prior import JointPrior
from mmsmca.models.layers.decoder import SMCADecoderLayer
from mmsmca.models.layers.dino_decoder import SMCADINODecoderLayer
from mmsmca.models.layers.explicit_attention import gaussian_log_prior
from mmsmca.models.layers.fused_attention import masked_softmax
from mmsmca.models.layers.joint_attention import Cells, joint_log_prior
from mmsmca.models.layers.other_priors import NoPrior
from mmsmca.models.layers.spatial_prior import LevelPrior


class VisualizationError(UserError):
    """Something that cannot be drawn. The message says what, and what can be."""


class Call(NamedTuple):
    """One call of a module: its arguments by name, and what it returned."""

    arguments: dict
    result: Any


@dataclass(frozen=True, kw_only=True)
class CoAttentionMaps:
    """Where some queries of an image look, in one decoder layer.

    Attributes:
        strides: Stride of every level, in pixels of the network's input.
        cell_place: Where cell 0 of a level lies, in cells. Cell (x, y) lies at pixel
            (x + cell_place, y + cell_place) * stride, where the prior has it. Defaults to 0.
        weights: Attention weights, (M, Q, H_j, W_j) a level.
        level_weights: Factor of every level's result in the output, (M, Q, L).
    """

    strides: Sequence[float]
    weights: list[Tensor]
    level_weights: Tensor
    cell_place: float = 0.0

    @property
    def level_shares(self) -> Tensor:
        """Part of the output that every level gives, (M, Q, L)."""
        sums = torch.stack([weights.sum(dim=(-2, -1)) for weights in self.weights], dim=-1)
        return self.level_weights * sums

    def head_means(self, weights: Sequence[Tensor], row: int) -> list[Tensor]:
        """Means over the heads as they are in the output, of all levels.

        Args:
            weights: Attention weights, (M, Q, H_j, W_j) a level: these maps', or others.
            row: Place of the query among those of the maps.

        Returns:
            (H_j, W_j) a level.
        """
        return [
            (self.level_weights[:, row, level, None, None] * level_weights[:, row]).mean(0)
            for level, level_weights in enumerate(weights)
        ]


@dataclass(frozen=True, kw_only=True)
class ModulatedMaps(CoAttentionMaps):
    """Co-attention with a spatial prior.

    Attributes:
        centers: Centres (x, y) of the queries, in pixels of the network's input, (Q, 2).
        priors: Gaussians of the heads, tensors without the dimension of images: (M, Q, 2 or 3).
        gaussians: Values of the Gaussians at the cells, (M, Q, H_j, W_j) a level.
        unmodulated: Attention weights that the same queries and keys give without the prior.
    """

    centers: Tensor
    priors: list[LevelPrior]
    gaussians: list[Tensor]
    unmodulated: list[Tensor]

    @property
    def offsets(self) -> list[Tensor]:
        """Of the heads' Gaussians from the centre of their query, in cells, (M, Q, 2) a level."""
        return [
            prior.centers + self.cell_place - self.centers / stride
            for prior, stride in zip(self.priors, self.strides, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class BoxTiedMaps(ModulatedMaps):
    """Co-attention with a spatial prior tied to boxes, the same Gaussians on every level.

    Attributes:
        boxes: Boxes (x1, y1, x2, y2) that the priors are tied to, in pixels of the network's
            input, (Q, 4). ``centers`` are theirs.
        prior_weights: Attention weights that the prior alone gives, gates included,
            (M, Q, H_j, W_j) a level.
    """

    boxes: Tensor
    prior_weights: list[Tensor]

    @property
    def prior_shares(self) -> Tensor:
        """Part of the attention that the prior alone gives to every level, (M, Q, L)."""
        return torch.stack([level.sum(dim=(-2, -1)) for level in self.prior_weights], dim=-1)

    @property
    def box_offsets(self) -> Tensor:
        """Of the heads' Gaussians from the centre of the box, in boxes, (M, Q, 2)."""
        return self.offsets[0] * self.strides[0] / self._sides

    @property
    def box_deviations(self) -> Tensor:
        """Standard deviations of the heads' Gaussians, in boxes, (M, Q, 2)."""
        prior = self.priors[0]
        deviations = (prior.beta / 2) ** 0.5 / prior.scales.abs()
        return deviations * self.strides[0] / self._sides

    @property
    def _sides(self) -> Tensor:
        return self.boxes[:, 2:] - self.boxes[:, :2]


class Inspection:
    """One image in one detector: what each query found, and where it looked.

    Args:
        model: A detector of the DETR family.
        calls: What :func:`record` recorded of a forward pass on one image.
        sample: The image's data sample, for its sizes.
    """

    def __init__(
        self, model: DetectionTransformer, calls: dict[nn.Module, Call], sample: DetDataSample
    ) -> None:
        self.layers = co_attention_layers(model)
        self.calls = calls
        height, width = sample.img_shape[:2]
        # Width and height of the network's input, and its pixels per pixel of the image.
        self.input_size = (width, height)
        self.scale_factor = torch.tensor(sample.get('scale_factor', (1.0, 1.0)))
        self.grid = calls[model.neck].result[-1].shape[-2:]
        self.padded_size = sample.batch_input_shape[::-1]
        logits, boxes = (output[:, 0].cpu() for output in calls[model.bbox_head].result)
        logits = logits[-1]
        if model.bbox_head.loss_cls.use_sigmoid:
            scores = logits.sigmoid()
        else:
            scores = logits.softmax(-1)[:, :-1]
        # As MMDetection's DETRHead has them, but of every query: (Q, 4), in pixels of the image.
        self.scores, self.labels = scores.max(-1)
        size = boxes.new_tensor([width, height] * 2)
        boxes = (bbox_cxcywh_to_xyxy(boxes) * size).clamp(min=size.new_zeros(4), max=size)
        boxes = boxes / self.scale_factor.repeat(2).to(boxes)
        self.boxes = boxes[-1]
        # Of every layer, (layers, Q, 4): DINO's head predicts with all of them, DETR's with the
        # last alone.
        self.layer_boxes = boxes if len(boxes) > 1 else boxes.expand(len(self.layers), -1, -1)

    def best_queries(self, count: int) -> list[int]:
        """The queries of the highest class scores, best first."""
        return self.scores.topk(min(count, len(self.scores))).indices.tolist()

    def query_nearest(self, box: Tensor) -> tuple[int, float]:
        """The query whose predicted box overlaps ``box`` (x1, y1, x2, y2) most, and their IoU."""
        overlaps = bbox_overlaps(self.boxes, box[None].to(self.boxes))[:, 0]
        return int(overlaps.argmax()), float(overlaps.max())

    def check_queries(self, queries: Sequence[int]) -> None:
        """Raise a VisualizationError if one of the numbers is not that of a query."""
        for query in queries:
            if not 0 <= query < len(self.scores):
                raise VisualizationError(
                    f'query {query} does not exist: the model has {len(self.scores)} queries, '
                    f'0 to {len(self.scores) - 1}'
                )

    @torch.no_grad()
    def maps(self, queries: Sequence[int], layer: int = -1) -> CoAttentionMaps:
        """Co-attention of some queries in a decoder layer.

        Args:
            queries: Their numbers.
            layer: Number of the layer; negative ones count from the end. Defaults to the last.

        Returns:
            :class:`BoxTiedMaps` for a layer of SMCA-DINO, :class:`ModulatedMaps` for another with a
            spatial prior, else :class:`CoAttentionMaps`.

        Raises:
            VisualizationError: If there is no such query or layer.
        """
        self.check_queries(queries)
        if not -len(self.layers) <= layer < len(self.layers):
            raise VisualizationError(
                f'layer {layer} does not exist: the decoder has {len(self.layers)} layers, '
                f'0 to {len(self.layers) - 1}'
            )
        module = self.layers[layer]
        if isinstance(module, SMCADecoderLayer):
            return _modulated_maps(module, self.calls, list(queries))
        if isinstance(module, SMCADINODecoderLayer):
            return _box_tied_maps(module, self.calls, list(queries))
        return _plain_maps(module, self.calls, list(queries), self.grid, self.padded_size)


def co_attention_layers(
    model: nn.Module,
) -> list[SMCADecoderLayer | SMCADINODecoderLayer | DetrTransformerDecoderLayer]:
    """Decoder layers whose co-attention has a weight for every cell, in their order.

    They are SMCA's and SMCA-DINO's, wherever a detector has them, and those of MMDetection's DETR.

    Raises:
        ConfigError: If there is none.
    """
    layers = [
        module
        for module in model.modules()
        if isinstance(module, (SMCADecoderLayer, SMCADINODecoderLayer))
        or isinstance(module, DetrTransformerDecoderLayer)
        and isinstance(getattr(module.cross_attn, 'attn', None), nn.MultiheadAttention)
    ]
    if not layers:
        raise ConfigError(
            f'{type(model).__name__} has no co-attention over all cells to draw: its decoder has '
            "neither SMCA's layers (SMCADecoderLayer, SMCADINODecoderLayer) nor DETR's "
            '(DetrTransformerDecoderLayer).'
        )
    return layers


def check_spatial_prior(model: nn.Module) -> None:
    """Raise a ConfigError if the detector has no spatial prior."""
    priors = [
        module.spatial_prior
        for module in model.modules()
        if isinstance(module, (SMCADecoderLayer, SMCADINODecoderLayer))
    ]
    if all(isinstance(prior, NoPrior) for prior in priors):
        raise ConfigError(
            f'{type(model).__name__} has no spatial prior to draw (no SMCADecoderLayer, nor a '
            'SMCADINODecoderLayer with another prior than NoPrior). Use the config of a detector '
            'that has; co-attention without a prior is drawn by tools/compare_attention.py.'
        )


@contextmanager
def record(model: DetectionTransformer) -> Iterator[dict[nn.Module, Call]]:
    """Record what the co-attention and the head of a detector are given and return.

    Args:
        model: A detector of the DETR family.

    Yields:
        The last call of each module of interest; filled by a forward pass inside the context.
    """
    calls: dict[nn.Module, Call] = {}

    def keep(module: nn.Module, args: tuple, kwargs: dict, result: Any) -> None:
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        calls[module] = Call(arguments, result)

    def every_head(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        return args, dict(kwargs, average_attn_weights=False)

    with ExitStack() as stack:
        modules = [model.neck, model.bbox_head]
        for layer in co_attention_layers(model):
            if isinstance(layer, (SMCADecoderLayer, SMCADINODecoderLayer)):
                modules += [layer, layer.cross_attn]
            else:
                attention = layer.cross_attn.attn
                modules.append(attention)
                # PyTorch returns the weights anyway, by default the mean over the heads.
                stack.callback(
                    attention.register_forward_pre_hook(every_head, with_kwargs=True).remove
                )
        for module in modules:
            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        yield calls


def inspect_image(
    model: DetectionTransformer, pipeline: Callable[[dict], dict], path: str | Path
) -> Inspection:
    """Run a detector on an image file and look at its co-attention.

    Args:
        model: A detector of the DETR family, in evaluation mode.
        pipeline: Test pipeline of the detector's data set.
        path: The image.

    Returns:
        The inspection.

    Raises:
        DataError: If the image cannot be read.
    """
    if not Path(path).is_file():
        raise DataError(f'image {path} does not exist')
    data = pipeline(dict(img_path=str(path), img_id=0))
    with record(model) as calls, torch.no_grad():
        samples = model.test_step(
            dict(inputs=[data['inputs']], data_samples=[data['data_samples']])
        )
    return Inspection(model, calls, samples[0])


def load_detector(
    config: str | Path, checkpoint: str | Path, device: str = 'cpu'
) -> tuple[DetectionTransformer, Compose]:
    """Build a detector, and its test pipeline, for looking at it.

    Args:
        config: Config file.
        checkpoint: File of its weights; every weight has to be there.
        device: Where it runs. Defaults to ``cpu``.

    Returns:
        The detector in evaluation mode, and the pipeline from ``img_path`` to its input.

    Raises:
        ConfigError: If config or checkpoint is missing, cannot be read, or they do not fit.
    """
    cfg = preflight.effective_config(
        Namespace(config=str(config), cfg_options=None, checkpoint=str(checkpoint))
    )
    preflight.check_config(cfg, phases=())
    model = init_detector(cfg, str(checkpoint), device=device)
    with naming_images():
        return model, Compose(get_test_pipeline_cfg(cfg))


def read_image(path: str | Path) -> np.ndarray:
    """Read an image as RGB, (height, width, 3)."""
    return mmcv.imread(str(path), channel_order='rgb')


def _modulated_maps(
    layer: SMCADecoderLayer, calls: dict[nn.Module, Call], queries: list[int]
) -> ModulatedMaps:
    """Weights of a co-attention, which itself may never have had them in memory."""
    attention, call = layer.cross_attn, calls[layer.cross_attn].arguments
    shapes, mask = call['level_shapes'], call['memory_mask']
    query = attention.attn.query(call['query'] + call['query_pos'])[:, :, queries]
    key = attention.attn.key(call['memory'] + call['memory_pos'])
    logits = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    priors = [
        LevelPrior(prior.centers[:, :, queries], prior.scales[:, :, queries], prior.beta)
        for prior in call['priors']
    ]
    log_priors = [
        gaussian_log_prior(prior.centers, prior.scales, shape, prior.beta)
        for prior, shape in zip(priors, shapes, strict=True)
    ]
    sizes = [height * width for height, width in shapes]
    # The cells that compete for a query's attention: one softmax each.
    groups = [sum(sizes)] if attention.joint else sizes

    def softmax(logits: Tensor) -> list[Tensor]:
        masks = [None] * len(groups) if mask is None else mask.split(groups, dim=1)
        weights = [
            masked_softmax(group, group_mask)
            for group, group_mask in zip(logits.split(groups, dim=-1), masks, strict=True)
        ]
        return _levels(torch.cat(weights, dim=-1), shapes)

    if attention.joint:
        # One softmax runs over the cells of all levels.
        level_weights = query.new_ones(len(queries), len(shapes))
    elif attention.scale_selection is not None:
        level_weights = attention.scale_selection(call['features'][0, queries]).softmax(-1)
    else:
        level_weights = query.new_full((len(queries), len(shapes)), 1 / len(shapes))

    log_prior = torch.cat(log_priors, dim=-1)
    placed = calls[layer].arguments
    return ModulatedMaps(
        strides=layer.spatial_prior.strides,
        weights=softmax(logits + log_prior),
        level_weights=level_weights.expand(query.size(1), -1, -1).cpu(),
        centers=(placed['centers'][0, queries] * placed['image_sizes'][0]).cpu(),
        priors=[LevelPrior(p.centers[0].cpu(), p.scales[0].cpu(), p.beta) for p in priors],
        gaussians=_levels(log_prior.exp(), shapes),
        unmodulated=softmax(logits),
    )


def _box_tied_maps(
    layer: SMCADINODecoderLayer, calls: dict[nn.Module, Call], queries: list[int]
) -> BoxTiedMaps:
    """Weights of a joint co-attention, and its prior level by level."""
    attention, call = layer.cross_attn, calls[layer.cross_attn].arguments
    cells, strides = call['cells'], layer.spatial_prior.strides
    shapes = _shapes(cells, len(strides))

    def heads(x: Tensor) -> Tensor:
        return x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    query = heads(attention.query_proj(call['query'] + call['query_pos']))[:, :, queries]
    key = heads(attention.key_proj(call['memory'] + call['memory_pos']))
    logits = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))
    prior = JointPrior(*(part[:, :, queries] for part in call['prior']))
    log_prior = joint_log_prior(prior, cells)
    # The same function in cells of a level: they lie half a cell from where these are counted.
    priors = [
        LevelPrior(prior.centers / ratio - 0.5, prior.precisions.sqrt() * ratio, 1.0)
        for ratio in (stride / strides[0] for stride in strides)
    ]
    gaussians = [
        gaussian_log_prior(level.centers, level.scales, shape, level.beta).exp()
        for level, shape in zip(priors, shapes, strict=True)
    ]
    placed = calls[layer].arguments
    size = placed['image_sizes'][0].repeat(2)
    boxes = (bbox_cxcywh_to_xyxy(placed['boxes'][0, queries]) * size).cpu()
    return BoxTiedMaps(
        strides=strides,
        cell_place=0.5,
        weights=_levels(masked_softmax(logits + log_prior, cells.padding), shapes),
        level_weights=logits.new_ones(*logits.shape[1:3], len(shapes)).cpu(),
        centers=(boxes[:, :2] + boxes[:, 2:]) / 2,
        priors=[LevelPrior(p.centers[0].cpu(), p.scales[0].cpu(), p.beta) for p in priors],
        gaussians=_levels(torch.cat(gaussians, dim=-1), shapes),
        unmodulated=_levels(masked_softmax(logits, cells.padding), shapes),
        boxes=boxes,
        prior_weights=_levels(masked_softmax(log_prior, cells.padding), shapes),
    )


def _shapes(cells: Cells, num_levels: int) -> list[tuple[int, int]]:
    """Height and width of every level, in cells."""
    shapes = []
    for level in range(num_levels):
        y = cells.coordinates[cells.levels == level, 1]
        height = len(y.unique())
        shapes.append((height, len(y) // height))
    return shapes


def _levels(values: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """Values at the cells of one image, (1, M, Q, N), a level: (M, Q, H_j, W_j)."""
    sizes = [height * width for height, width in shapes]
    levels = zip(values[0].split(sizes, dim=-1), shapes, strict=True)
    return [level.unflatten(-1, shape).cpu() for level, shape in levels]


def _plain_maps(
    layer: DetrTransformerDecoderLayer,
    calls: dict[nn.Module, Call],
    queries: list[int],
    grid: tuple[int, int],
    padded_size: Sequence[int],
) -> CoAttentionMaps:
    """Weights as PyTorch's attention gave them."""
    weights = calls[layer.cross_attn.attn].result[1][0, :, queries].cpu()
    # A map has at least as many cells as fit: 42, not 41.7, for 1333 pixels at stride 32.
    stride = 2.0 ** round(math.log2(max(padded_size) / max(grid)))
    return CoAttentionMaps(
        strides=(stride,),
        weights=[weights.unflatten(-1, grid)],
        level_weights=weights.new_ones(*weights.shape[:2], 1),
    )
