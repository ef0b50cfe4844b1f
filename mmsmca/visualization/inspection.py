"""Run a detector on an image and record its co-attention with forward hooks."""

import inspect
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import mmcv
import numpy as np
import torch
from mmcv.transforms import Compose
from mmdet.apis import init_detector
from mmdet.models.detectors import DetectionTransformer
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from torch import nn

from mmsmca.checks.config import load_config
from mmsmca.checks.load_image import naming_images
from mmsmca.checks.preflight import check_config
from mmsmca.errors import ConfigError, DataError, UserError
from mmsmca.models.layers.modulated_decoder import ModulatedDecoderLayer

from .maps import CoAttentionMaps, Gaussians, layer_gaussians, layer_maps, of_queries


class VisualizationError(UserError):
    """Something cannot be drawn. The message says what, and what can be drawn instead."""


class Call(NamedTuple):
    """One call of a module: its arguments by name, and its result."""

    arguments: dict
    result: Any


class Inspection:
    """One detector's forward pass on one image: what each query found, and where it looked.

    Args:
        model: A detector with a spatial prior.
        calls: Calls that :func:`record` recorded in a forward pass on one image.
        sample: Data sample of the image, for its sizes.
        image: The image itself, RGB, (height, width, 3).
        classes: Names of the classes. Those that are missing get a number instead.

    Attributes:
        layers: The decoder layers with a spatial prior, in order.
        input_size: Width and height of the network's input, without padding, in pixels.
        scale_factor: Pixels of the network's input per pixel of the image, along x and y.
        scores: Highest class score of every query, (Q,).
        labels: Class of that score, (Q,).
        boxes: Predicted boxes (x1, y1, x2, y2), in pixels of the image, (Q, 4).
        layer_boxes: Predicted boxes of every decoder layer, (layers, Q, 4). DETR's head predicts
            from the last layer only; its boxes then stand for all layers.
    """

    def __init__(
        self,
        model: DetectionTransformer,
        calls: dict[nn.Module, Call],
        sample: DetDataSample,
        image: np.ndarray,
        classes: Sequence[str] = (),
    ) -> None:
        self.calls, self.image = calls, image
        self.layers = modulated_layers(model)
        height, width = sample.img_shape[:2]
        self.input_size = (width, height)
        self.scale_factor = torch.tensor(sample.get('scale_factor', (1.0, 1.0)))
        logits, boxes = (output[:, 0].cpu() for output in calls[model.bbox_head].result)
        if model.bbox_head.loss_cls.use_sigmoid:
            scores = logits[-1].sigmoid()
        else:
            scores = logits[-1].softmax(-1)[:, :-1]
        # As in MMDetection's DETRHead, but for every query.
        self.scores, self.labels = scores.max(-1)
        numbers = range(len(classes), scores.size(-1))
        self.classes = [*classes, *(f'class {number}' for number in numbers)]
        size = boxes.new_tensor([width, height] * 2)
        boxes = (bbox_cxcywh_to_xyxy(boxes) * size).clamp(min=size.new_zeros(4), max=size)
        boxes = boxes / self.scale_factor.repeat(2).to(boxes)
        self.boxes = boxes[-1]
        self.layer_boxes = boxes if len(boxes) > 1 else boxes.expand(len(self.layers), -1, -1)

    def best_queries(self, count: int) -> list[int]:
        """The queries with the highest class scores, best first."""
        return self.scores.topk(min(count, len(self.scores))).indices.tolist()

    @torch.no_grad()
    def gaussians(self, layer: int) -> Gaussians:
        """The spatial prior of all queries in a decoder layer."""
        module = self.layers[layer]
        return layer_gaussians(
            module, self.calls[module].arguments, self.calls[module.cross_attn].arguments
        )

    @torch.no_grad()
    def maps(self, queries: Sequence[int], layer: int = -1) -> CoAttentionMaps:
        """Co-attention of some queries in a decoder layer.

        Args:
            queries: Indices of the queries.
            layer: Index of the layer; negative ones count from the end. Defaults to the last.

        Returns:
            The maps.

        Raises:
            VisualizationError: If there is no such query or layer.
        """
        num_queries, num_layers = len(self.scores), len(self.layers)
        for query in queries:
            if query not in range(num_queries):
                raise VisualizationError(
                    f'query {query} does not exist: the model has {num_queries} queries, '
                    f'0 to {num_queries - 1}'
                )
        if layer not in range(-num_layers, num_layers):
            raise VisualizationError(
                f'layer {layer} does not exist: the decoder has {num_layers} layers, '
                f'0 to {num_layers - 1}'
            )
        module = self.layers[layer]
        return layer_maps(
            module,
            of_queries(self.calls[module].arguments, queries),
            of_queries(self.calls[module.cross_attn].arguments, queries),
        )


def modulated_layers(model: nn.Module) -> list[ModulatedDecoderLayer]:
    """Decoder layers with a spatial prior, in order.

    Raises:
        ConfigError: If there is none.
    """
    layers = [module for module in model.modules() if isinstance(module, ModulatedDecoderLayer)]
    if all(layer.spatial_prior is None for layer in layers):
        raise ConfigError(
            f'{type(model).__name__} has no spatial prior to draw: its decoder has neither '
            'SMCADecoderLayer nor an SMCADINODecoderLayer with a prior. Use the config of a '
            'detector that has one.'
        )
    return layers


@contextmanager
def record(model: DetectionTransformer) -> Iterator[dict[nn.Module, Call]]:
    """Record inputs and results of the co-attention and the head of a detector.

    Args:
        model: A detector with a spatial prior.

    Yields:
        The last call of each module of interest, once a forward pass inside the context has run.
    """
    calls: dict[nn.Module, Call] = {}

    def keep(module: nn.Module, args: tuple, kwargs: dict, result: Any) -> None:
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
        calls[module] = Call(arguments, result)

    with ExitStack() as stack:
        modules = [model.bbox_head]
        for layer in modulated_layers(model):
            modules += [layer, layer.cross_attn]
        for module in modules:
            stack.callback(module.register_forward_hook(keep, with_kwargs=True).remove)
        yield calls


def inspect_image(
    model: nn.Module, cfg: Config, path: str | Path, classes: Sequence[str] = ()
) -> Inspection:
    """Run a detector on an image file and record its co-attention.

    Args:
        model: A detector with a spatial prior, in evaluation mode, or a wrapper of one.
        cfg: Its config, for the test pipeline.
        path: Image file.
        classes: Names of the classes. Those that are missing get a number instead.

    Returns:
        The inspection.

    Raises:
        ConfigError: If the detector has no spatial prior.
        DataError: If the image cannot be read.
    """
    if not Path(path).is_file():
        raise DataError(f'image {path} does not exist')
    modulated_layers(model)
    # Inside wrappers for several processes, test-time augmentation and semi-supervised training,
    # where the teacher predicts and comes last.
    *_, detector = (part for part in model.modules() if isinstance(part, DetectionTransformer))
    with naming_images():
        pipeline = Compose(get_test_pipeline_cfg(cfg))
    data = pipeline(dict(img_path=str(path), img_id=0))
    with record(detector) as calls, torch.no_grad():
        samples = detector.test_step({key: [value] for key, value in data.items()})
    ignoring = 'ignore_orientation' in getattr(pipeline.transforms[0], 'color_type', '')
    flag = 'color_ignore_orientation' if ignoring else 'color'
    image = mmcv.imread(str(path), flag, channel_order='rgb')
    return Inspection(detector, calls, samples[0], image, classes)


def load_detector(config: str | Path, checkpoint: str | Path, device: str = 'cpu') -> nn.Module:
    """Build a detector for inspection.

    Args:
        config: Config file.
        checkpoint: Checkpoint file, which must contain every weight.
        device: Device to run on. Defaults to ``cpu``.

    Returns:
        The detector in evaluation mode. Like MMDetection's ``init_detector``, this sets its ``cfg``
        and, from the checkpoint, its ``dataset_meta``.

    Raises:
        ConfigError: If config or checkpoint is missing or unreadable, or the two do not match.
    """
    args = Namespace(config=str(config), cfg_options=None, checkpoint=str(checkpoint))
    cfg = load_config(args)
    check_config(cfg, phases=())
    # Without options, it asks for the config of a backbone, which wrappers do not have.
    return init_detector(cfg, str(checkpoint), device=device, cfg_options={})
