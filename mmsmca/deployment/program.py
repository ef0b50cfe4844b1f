"""SMCA as an ONNX graph: from images as OpenCV reads them to boxes in pixels.

The detector stays as it is: :class:`OnnxSMCA` calls its parts, with every size taken from tensors,
between a preprocessing and a postprocessing of its own. PyTorch's exporter makes the graph of it
(``torch.onnx.export(dynamo=True)``, standard operators only).
"""

import json
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import onnx
import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models import DetDataPreprocessor
from mmdet.registry import DATASETS, MODELS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from onnx_ir import Value
from onnxscript import opset18
from torch import Tensor, nn

from mmsmca.checkpoints import safe_globals
from mmsmca.errors import UserError
from mmsmca.files import written_whole
from mmsmca.models import SMCADETR, SMCADINO, SMCADINOHead, SMCAHead
from mmsmca.models.layers.encoder import flatten_levels

# The first with all that the graph needs is 16 (GridSample, in the convolutional encoder).
OPSET = 18
# Its methods are annotated with types that no value of a graph has.
op: Any = opset18
INPUTS = ('images', 'sizes')
OUTPUTS = ('boxes', 'scores', 'labels')
# Height and width of the images that are traced; the graph takes others too.
TRACED_SIZE = (256, 320)


class ExportError(UserError):
    """A model that cannot be exported. The message says what to do."""


class OnnxSMCA(nn.Module):
    """A detector with its pre- and postprocessing, in tensors only.

    Padding is always masked, even where there is none: a graph has no branches.

    Args:
        model: The detector.

    Raises:
        ExportError: If the model is none whose graph would be of standard operators.
    """

    def __init__(self, model: SMCADETR | SMCADINO) -> None:
        super().__init__()
        check_supported(model)
        self.model: SMCADETR | SMCADINO = model.eval()

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
        if hasattr(model, 'level_embed'):
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
        logits, boxes = model.bbox_head(**decoded)
        return self._best(logits[-1].sigmoid(), boxes[-1], image_sizes)

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
    supported = ((SMCADETR, SMCAHead), (SMCADINO, SMCADINOHead))
    if not any(isinstance(model, kind) and isinstance(head, its) for kind, its in supported):
        raise ExportError(
            f'model.type={type(model).__name__} with model.bbox_head.type={type(head).__name__} '
            'cannot be exported: only SMCADETR with SMCAHead and SMCADINO with SMCADINOHead can. '
            'MMDeploy exports models of MMDetection itself.'
        )
    if any(isinstance(module, MultiScaleDeformableAttention) for module in model.modules()):
        raise ExportError(
            f'model.encoder.type={type(model.encoder).__name__} cannot be exported: its deformable '
            'attention has no standard ONNX operator. Use another of the encoders.'
        )
    assert head is not None  # Supported models have one.
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


def load_model(cfg: Config) -> tuple[SMCADETR | SMCADINO, dict]:
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


def export(model: SMCADETR | SMCADINO, metadata: dict) -> onnx.ModelProto:
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
    height, width = TRACED_SIZE
    images = torch.zeros((2, height, width, 3), dtype=torch.uint8)
    sizes = torch.tensor([(height, width), (height // 2, width // 2)])
    free = torch.export.Dim.DYNAMIC
    exported = torch.export.export(
        OnnxSMCA(model).eval(),
        (images, sizes),
        dynamic_shapes=({0: free, 1: free, 2: free}, {0: free}),
        strict=False,
    )
    program = torch.onnx.export(
        exported,
        input_names=INPUTS,
        output_names=OUTPUTS,
        dynamic_shapes=({0: 'batch', 1: 'height', 2: 'width'}, {0: 'batch'}),
        opset_version=OPSET,
        custom_translation_table={
            torch.ops.aten.scaled_dot_product_attention.default: attention_by_head
        },
        dynamo=True,
        verbose=False,
    )
    assert program is not None  # It would be None without dynamo only.
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {key: json.dumps(x) for key, x in metadata.items()})
    onnx.checker.check_model(proto, full_check=True)
    return proto


def attention_by_head(
    query: Value,
    key: Value,
    value: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    """Attention as a graph has it: one head after the other.

    There is no fused attention among the standard operators, so the weights are in memory; like
    this, those of one head at a time. Arguments and result are those of PyTorch's
    ``scaled_dot_product_attention``, (B, N, L, d), of which the package uses ``attn_mask``
    (booleans, of which every query has a true one) and ``scale``.
    """
    _, num_heads, _, channels = cast(tuple[int, ...], query.shape)
    factor = channels**-0.5 if scale is None else scale
    query = op.Mul(query, op.Constant(value_float=factor))
    lowest = op.Constant(value_float=torch.finfo(torch.float32).min)
    split = [op.Split(x, axis=1, num_outputs=num_heads) for x in (query, key, value)]
    heads = []
    for q, k, v in zip(*split, strict=True):
        logits = op.MatMul(q, op.Transpose(k, perm=(0, 1, 3, 2)))
        if attn_mask is not None:
            logits = op.Where(attn_mask, logits, lowest)
        heads.append(op.MatMul(op.Softmax(logits, axis=-1), v))
    return op.Concat(*heads, axis=1)


def save(proto: onnx.ModelProto, path: str | Path) -> None:
    """Write a graph, whole or not at all; an existing file is replaced."""
    with written_whole(path) as partial:
        onnx.save(proto, partial)
