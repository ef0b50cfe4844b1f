"""SMCA as an ONNX graph: from images as OpenCV reads them to boxes in pixels.

The detector stays as it is: :class:`OnnxSMCA` calls its parts, with every size taken from tensors,
between a preprocessing and a postprocessing of its own. PyTorch's exporter makes the graph of it
(``torch.onnx.export(dynamo=True)``, standard operators only). :func:`compare` runs the detector
itself, by MMDetection's own path, beside the graph.
"""

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import onnxscript  # noqa: F401 - PyTorch's exporter needs it, and asks late
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models import DetDataPreprocessor
from mmdet.registry import DATASETS, MODELS
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mmsmca import denormals
from mmsmca.checkpoints import safe_globals
from mmsmca.datasets.shapes import draw_image
from mmsmca.models import SMCADETR, SMCAHead
from mmsmca.models.layers.encoder import flatten_levels

# The first with all that the graph needs is 16 (GridSample, in the convolutional encoder).
OPSET = 18
INPUTS = ('images', 'sizes')
OUTPUTS = ('boxes', 'scores', 'labels')

SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 0.05  # pixels
# (height, width) of the images to compare with; multiples of no stride, but for the first.
CHECK_SIZES = ((256, 320), (333, 250), (161, 203))


class ExportError(ValueError):
    """A model that cannot be exported, or a file in the way. The message says what to do."""


class OnnxSMCA(nn.Module):
    """A detector with its pre- and postprocessing, in tensors only.

    Padding is always masked, even where there is none: a graph has no branches.

    Args:
        model: The detector.

    Raises:
        ExportError: If the model is none whose graph would be of standard operators.
    """

    def __init__(self, model: SMCADETR) -> None:
        super().__init__()
        check_supported(model)
        self.model: SMCADETR = model.eval()

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect.

        Args:
            images: Images as OpenCV reads them, BGR, (B, H, W, 3), uint8. Smaller ones lie in the
                upper left corner; what is beside them does not matter.
            sizes: Height and width of each image without padding, in pixels, (B, 2), int64.

        Returns:
            The detections of every image by descending score, D = ``test_cfg.max_per_img``: boxes
            (left, top, right, bottom) in pixels of ``images``, (B, D, 4), float32; scores in
            [0, 1], (B, D), float32; labels, indices of classes, (B, D), int64.
        """
        model = self.model
        levels = model.extract_feat(self._normalise(images, sizes))
        # A cell is content if its first pixel is, so there are as many as the image has alone.
        masks = [
            _beyond(level.shape[-2:], sizes, stride)
            for level, stride in zip(levels, model.neck_strides, strict=True)
        ]
        pos = [model.positional_encoding(mask) for mask in masks]
        if len(pos) > 1:
            pos = [p + e[:, None, None] for p, e in zip(pos, model.level_embed, strict=True)]
        memory = model.forward_encoder(
            feat=flatten_levels(levels),
            feat_pos=flatten_levels(pos),
            feat_mask=torch.cat([mask.flatten(1) for mask in masks], dim=1),
            level_shapes=[level.shape[-2:] for level in levels],
        )
        decoder_inputs, _ = model.pre_decoder(**memory)
        image_sizes = sizes.flip(1).to(torch.float32)
        decoded = model.forward_decoder(**decoder_inputs, image_sizes=image_sizes)
        logits, boxes = model.bbox_head(decoded['hidden_states'][-1:], decoded['references'])
        return self._best(logits[0].sigmoid(), boxes[0], image_sizes)

    def _normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Do what the data preprocessor does; (B, 3, H, W)."""
        preprocessor = self.model.data_preprocessor
        images = images.permute(0, 3, 1, 2)
        if preprocessor._channel_conversion:
            images = images.flip(1)
        images = (images.to(torch.float32) - preprocessor.mean) / preprocessor.std
        padding = _beyond(images.shape[-2:], sizes, 1)
        return images.masked_fill(padding.unsqueeze(1), float(preprocessor.pad_value))

    def _best(
        self, scores: Tensor, boxes: Tensor, image_sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Do what the head does: the best pairs of query and class, as boxes in pixels."""
        classes = scores.size(-1)
        scores, indices = scores.flatten(1).topk(
            self.model.test_cfg.get('max_per_img', self.model.num_queries), dim=1
        )
        queries = torch.div(indices, classes, rounding_mode='floor')
        boxes = boxes.gather(1, queries.unsqueeze(-1).expand(-1, -1, 4))
        limits = image_sizes.repeat(1, 2).unsqueeze(1)
        boxes = bbox_cxcywh_to_xyxy(boxes) * limits
        return torch.minimum(boxes.clamp(min=0), limits), scores, indices % classes


def _beyond(shape: Sequence[int], sizes: Tensor, stride: int) -> Tensor:
    """Where the cells of a map lie beyond the images: (B, H, W) of booleans."""
    beyond_y, beyond_x = [
        torch.arange(cells, device=sizes.device) * stride >= sizes[:, axis, None]
        for axis, cells in enumerate(shape)
    ]
    return beyond_y.unsqueeze(2) | beyond_x.unsqueeze(1)


def check_supported(model: nn.Module) -> None:
    """Raise an ExportError for a model that :class:`OnnxSMCA` does not reproduce."""
    head = getattr(model, 'bbox_head', None)
    if not (isinstance(model, SMCADETR) and isinstance(head, SMCAHead)):
        raise ExportError(
            f'model.type={type(model).__name__} with model.bbox_head.type={type(head).__name__} '
            'cannot be exported: only SMCADETR with SMCAHead can. MMDeploy exports models of '
            'MMDetection itself.'
        )
    if any(isinstance(module, MultiScaleDeformableAttention) for module in model.modules()):
        raise ExportError(
            f'model.encoder.type={type(model.encoder).__name__} cannot be exported: its deformable '
            'attention has no standard ONNX operator. Use SMCAEncoder or SMCAConvEncoder.'
        )
    if not head.loss_cls.use_sigmoid:
        raise ExportError(
            'model.bbox_head.loss_cls scores by softmax, which cannot be exported: use a sigmoid, '
            'as FocalLoss does.'
        )
    preprocessor = model.data_preprocessor
    if not isinstance(preprocessor, DetDataPreprocessor) or preprocessor.pad_size_divisor != 1:
        raise ExportError(
            'model.data_preprocessor has to be a DetDataPreprocessor of pad_size_divisor=1 to be '
            "exported: images are padded to the batch's largest, no further."
        )


def load_model(cfg: Config) -> tuple[SMCADETR, dict]:
    """Build a config's detector with the weights of its ``load_from``, all of them.

    Args:
        cfg: Config with a model; ``cfg.load_from`` is the checkpoint.

    Returns:
        The detector, for inference on the CPU; and what the graph's user has to know besides:
        ``classes``, their names, from the checkpoint or else from the config, and ``scale``, the
        size (long side, short side) in pixels that test images are resized to.

    Raises:
        ExportError: If the detector cannot be exported, or a weight is missing, unknown or of
            another shape.
    """
    dataset = cfg.test_dataloader.dataset
    resize = [t for t in dataset.pipeline if t.type == 'Resize' and t.get('keep_ratio')]
    if not resize:
        raise ExportError(
            'test_dataloader.dataset.pipeline has no Resize with keep_ratio=True: the size that '
            'the graph gets its images in cannot be told without one.'
        )
    if 'backbone' in cfg.model:  # its pretrained weights would be downloaded for nothing
        cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    check_supported(model)
    # Once more: after whatever it loads, onedl-mmengine takes its safe classes off PyTorch's list.
    safe_globals.register()
    try:
        checkpoint = load_checkpoint(model, cfg.load_from, map_location='cpu', strict=True)
    except RuntimeError as error:
        reason = next(line.strip() for line in str(error).splitlines()[1:] if line.strip())
        reason = textwrap.shorten(reason, 300, placeholder=' ...')
        raise ExportError(
            f'checkpoint {cfg.load_from} does not fit the config: {reason}. Name the config '
            'that it was trained with.'
        ) from error
    dataset_meta = checkpoint.get('meta', {}).get('dataset_meta')
    if not isinstance(dataset_meta, dict):  # as in converted checkpoints
        dataset_meta = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True)).metainfo
    metadata = dict(classes=list(dataset_meta['classes']), scale=sorted(resize[0].scale)[::-1])
    return model.eval(), metadata


def export(model: SMCADETR, metadata: dict) -> onnx.ModelProto:
    """Export a detector; batch, height and width are free.

    Args:
        model: The detector, on the CPU.
        metadata: What the graph's user has to know besides, stored as JSON.

    Returns:
        A checked ONNX model, weights included. Inputs and outputs are named, and are, as those of
        :meth:`OnnxSMCA.forward`.

    Raises:
        ExportError: If the detector cannot be exported.
    """
    (height, width), *_ = CHECK_SIZES
    images = torch.zeros((2, height, width, 3), dtype=torch.uint8)
    sizes = torch.tensor([(height, width), (height // 2, width // 2)])
    program = torch.onnx.export(
        OnnxSMCA(model).eval(),
        (images, sizes),
        input_names=INPUTS,
        output_names=OUTPUTS,
        dynamic_shapes=({0: 'batch', 1: 'height', 2: 'width'}, {0: 'batch'}),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # It would be None without dynamo only.
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {key: json.dumps(x) for key, x in metadata.items()})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def start_session(proto: onnx.ModelProto) -> onnxruntime.InferenceSession:
    """Start onnxruntime on the CPU, with as many threads as PyTorch has."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if denormals.switched_on():
        options.add_session_config_entry('session.set_denormal_as_zero', '1')
    return onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=['CPUExecutionProvider']
    )


def check_images() -> list[np.ndarray]:
    """Generated images to compare with, one of every size of :data:`CHECK_SIZES`."""
    images = []
    for index, (height, width) in enumerate(CHECK_SIZES):
        image, _ = draw_image(
            max(height, width), max_objects=4, variant='easy', seed=0, split='val', index=index
        )
        images.append(cv2.resize(image[..., ::-1], (width, height)))
    return images


def check_batches(images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Batches to compare with: every image alone, and every two of them padded together."""
    return [list(batch) for count in (1, 2) for batch in combinations(images, count)]


def run_torch(model: SMCADETR, images: Sequence[np.ndarray]) -> list[tuple[np.ndarray, ...]]:
    """Detect by MMDetection's own path.

    Args:
        model: The detector.
        images: A batch of images, BGR, (H, W, 3), uint8.

    Returns:
        Boxes, scores and labels of every image.
    """
    data = dict(
        inputs=[torch.from_numpy(image).permute(2, 0, 1) for image in images],
        data_samples=[
            DetDataSample(metainfo=dict(img_shape=image.shape[:2], scale_factor=(1.0, 1.0)))
            for image in images
        ],
    )
    with torch.no_grad():
        found = [sample.pred_instances for sample in model.test_step(data)]
    return [(x.bboxes.numpy(), x.scores.numpy(), x.labels.numpy()) for x in found]


def run_onnx(
    session: onnxruntime.InferenceSession, images: Sequence[np.ndarray]
) -> list[tuple[np.ndarray, ...]]:
    """Detect by the graph; arguments and result as those of :func:`run_torch`."""
    sizes = np.array([image.shape[:2] for image in images])
    # White, where the data preprocessor pads with the mean: the graph has to see to that.
    padded = np.full((len(images), *sizes.max(axis=0), 3), 255, dtype=np.uint8)
    for canvas, image in zip(padded, images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    outputs = session.run(OUTPUTS, dict(images=padded, sizes=sizes))
    return list(zip(*outputs, strict=True))


@dataclass(frozen=True)
class Difference:
    """How far the graph is from the detector on a batch.

    Attributes:
        sizes: Height and width of the images.
        scores: Largest difference of the scores of two matched detections.
        boxes: Largest difference of a side of their boxes, in pixels.
        unmatched: Detections of a label that the other side does not have as often.
    """

    sizes: tuple[tuple[int, int], ...]
    scores: float
    boxes: float
    unmatched: int

    @property
    def tolerable(self) -> bool:
        """Whether this is within the tolerances."""
        return (
            self.unmatched == 0 and self.scores <= SCORE_TOLERANCE and self.boxes <= BOX_TOLERANCE
        )


def compare(
    model: SMCADETR, session: onnxruntime.InferenceSession, images: Sequence[np.ndarray]
) -> Difference:
    """Compare the graph with the detector.

    Every detection of the graph is matched with one of all the detector's pairs of query and class:
    which of two equal scores is the last that makes it to the output is chance. That none is
    missing then follows from the scores, compared in their order.

    Args:
        model: The detector.
        session: The graph.
        images: A batch of images, BGR, (H, W, 3), uint8.
    """
    head = model.bbox_head
    test_cfg, head.test_cfg = head.test_cfg, dict(max_per_img=model.num_queries * head.num_classes)
    try:
        expected = run_torch(model, images)
    finally:
        head.test_cfg = test_cfg
    pairs = [_match(*both) for both in zip(expected, run_onnx(session, images), strict=True)]
    scores, boxes, unmatched = zip(*pairs, strict=True)
    sizes = tuple(image.shape[:2] for image in images)
    return Difference(sizes, max(scores), max(boxes), sum(unmatched))


def _match(
    expected: tuple[np.ndarray, ...], found: tuple[np.ndarray, ...]
) -> tuple[float, float, int]:
    """Match an image's detections; differences of scores and boxes, and how many have no match."""
    boxes, scores, labels = expected
    found_boxes, found_scores, found_labels = found
    of_order = np.abs(found_scores - scores[: len(found_scores)]).max()

    score_gaps = np.abs(found_scores[:, None] - scores)
    box_gaps = np.abs(found_boxes[:, None] - boxes).max(axis=-1)
    costs = np.maximum(score_gaps / SCORE_TOLERANCE, box_gaps / BOX_TOLERANCE)
    costs[found_labels[:, None] != labels] = 1e9
    pairs = linear_sum_assignment(costs)
    same = costs[pairs] < 1e9
    return (
        float(max(of_order, score_gaps[pairs][same].max(initial=0))),
        float(box_gaps[pairs][same].max(initial=0)),
        int((~same).sum()),
    )


def check_destination(path: str | Path, overwrite: bool) -> None:
    """Check that a file can be written.

    Args:
        path: Destination.
        overwrite: Whether it may exist.

    Raises:
        ExportError: If the file exists and must not, or its folder does not.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        raise ExportError(f'{path} exists: name another file, or replace this one by --overwrite')
    if not path.parent.is_dir():
        raise ExportError(f'{path.parent} is no folder: create it first')


def save(proto: onnx.ModelProto, path: str | Path) -> None:
    """Write a graph, whole or not at all; an existing file is replaced."""
    path = Path(path)
    partial = path.with_name(path.name + '.partial')
    try:
        onnx.save(proto, partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
