"""SMCA as a tensor program, from images as OpenCV reads them to boxes in pixels.

The detector itself is unchanged: :class:`DeployedSMCA` adds its own pre- and postprocessing and
calls the detector's parts, with every size taken from tensors. ``torch.export`` traces it, and the
traced program is converted for ONNX and OpenVINO.
"""

import textwrap
from collections.abc import Iterator, Sequence

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmcv.transforms import Compose, Resize
from mmdet.models import DetDataPreprocessor
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.config import Config, ConfigDict
from mmengine.runner import load_checkpoint
from torch import Tensor, nn
from torch.export import ExportedProgram

from mmsmca.checkpoints import safe_globals
from mmsmca.errors import UserError, one_line
from mmsmca.models import SMCADETR, SMCADINO, SMCADINOHead, SMCAHead

INPUTS = ('images', 'sizes')
OUTPUTS = ('boxes', 'scores', 'labels')
# Modules that may run in lower precision. Boxes, priors and query selection may not.
FAST_MODULES = ('model.backbone', 'model.neck', 'model.encoder')
# Height and width of the images used for tracing; the program accepts other sizes too.
TRACED_SIZE = (256, 320)


class ExportError(UserError):
    """A model that cannot be exported; the message says what to do."""


class DeployedSMCA(nn.Module):
    """A detector with its pre- and postprocessing, using tensors only.

    Padding is always masked, even if there is none, as a program has no branches.

    Args:
        model: The detector.

    Raises:
        ExportError: If the model is not supported, see :func:`check_supported`.
    """

    def __init__(self, model: SMCADETR | SMCADINO) -> None:
        super().__init__()
        check_supported(model)
        self.model: SMCADETR | SMCADINO = model.eval()

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect objects.

        Args:
            images: Images as OpenCV reads them, BGR, (B, H, W, 3), uint8. Smaller images are in the
                upper left corner; the padding may have any values.
            sizes: Height and width of each image without padding, in pixels, (B, 2), int64.

        Returns:
            Detections of every image by descending score, where D is ``test_cfg.max_per_img`` or
            the number of (query, class) pairs if that is smaller: boxes (left, top, right, bottom)
            in pixels of ``images``, (B, D, 4), float32; scores in [0, 1], (B, D), float32; labels,
            which are class indices, (B, D), int64.
        """
        model = self.model
        levels = model.extract_feat(self._normalise(images, sizes))
        # A cell is content if its first pixel is, so padding does not change their number.
        masks = [
            _beyond(level.shape[-2:], sizes, stride)
            for level, stride in zip(levels, model.neck_strides, strict=True)
        ]
        encoded = model.forward_encoder(model.flatten_maps(levels, masks))
        decoder_inputs, _ = model.pre_decoder(**encoded)
        image_sizes = sizes.flip(1).to(torch.float32)
        decoded = model.forward_decoder(**decoder_inputs, image_sizes=image_sizes)
        logits, boxes = model.bbox_head(**decoded)
        return self._best(logits[-1].sigmoid(), boxes[-1], image_sizes)

    def _normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalise and pad images like the data preprocessor; (B, 3, H, W)."""
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
        """Select the best (query, class) pairs like the head, with boxes in pixels."""
        classes = scores.size(-1)
        num_detections = self.model.test_cfg.get('max_per_img', self.model.num_queries)
        scores, indices = scores.flatten(1).topk(min(num_detections, scores[0].numel()), dim=1)
        queries = torch.div(indices, classes, rounding_mode='floor')
        boxes = boxes.gather(1, queries.unsqueeze(-1).expand(-1, -1, 4))
        limits = image_sizes.repeat(1, 2).unsqueeze(1)
        boxes = bbox_cxcywh_to_xyxy(boxes) * limits
        return torch.minimum(boxes.clamp(min=0), limits), scores, indices % classes


def _beyond(shape: Sequence[int], sizes: Tensor, stride: int) -> Tensor:
    """Mask of the cells of a map that lie beyond the images, bool, (B, H, W)."""
    beyond_y, beyond_x = [
        torch.arange(cells, device=sizes.device) * stride >= sizes[:, axis, None]
        for axis, cells in enumerate(shape)
    ]
    return beyond_y.unsqueeze(2) | beyond_x.unsqueeze(1)


def check_supported(model: nn.Module) -> None:
    """Raise an ExportError for a model that :class:`DeployedSMCA` does not reproduce."""
    head = getattr(model, 'bbox_head', None)
    supported = ((SMCADETR, SMCAHead), (SMCADINO, SMCADINOHead))
    if not any(isinstance(model, kind) and isinstance(head, its) for kind, its in supported):
        raise ExportError(
            f'model.type={type(model).__name__} with model.bbox_head.type={type(head).__name__} '
            'cannot be exported: only SMCADETR with SMCAHead and SMCADINO with SMCADINOHead can. '
            "MMDeploy exports MMDetection's own models."
        )
    if any(isinstance(module, MultiScaleDeformableAttention) for module in model.modules()):
        raise ExportError(
            f'model.encoder.type={type(model.encoder).__name__} cannot be exported: its deformable '
            'attention is not a standard operator. Use another encoder.'
        )
    assert head is not None  # Supported models have one.
    if not head.loss_cls.use_sigmoid:
        raise ExportError(
            'model.bbox_head.loss_cls uses a softmax, which cannot be exported: use a sigmoid, '
            'as FocalLoss does.'
        )
    preprocessor = model.data_preprocessor
    if not isinstance(preprocessor, DetDataPreprocessor) or preprocessor.pad_size_divisor != 1:
        raise ExportError(
            'model.data_preprocessor must be a DetDataPreprocessor with pad_size_divisor=1 to be '
            'exported: images are padded to the largest of the batch, no further.'
        )


def load_model(cfg: Config) -> tuple[SMCADETR | SMCADINO, dict]:
    """Build a config's detector and load all its weights from ``cfg.load_from``.

    Args:
        cfg: Config with a model; ``cfg.load_from`` is the checkpoint.

    Returns:
        The detector, for inference on the CPU, and metadata for users of the program: ``classes``,
        the class names, from the checkpoint or else from the config, and ``scale``, the size (long
        side, short side) in pixels that test images are resized to.

    Raises:
        ExportError: If the detector cannot be exported, or a weight is missing, unknown or of
            another shape.
    """
    scale = image_scale(cfg)
    if 'backbone' in cfg.model:  # its pretrained weights would be downloaded needlessly
        cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    check_supported(model)
    # Register again: onedl-mmengine removes its safe classes from PyTorch's list after each load.
    safe_globals.register()
    try:
        checkpoint = load_checkpoint(model, cfg.load_from, map_location='cpu', strict=True)
    except RuntimeError as error:
        reason = next(line.strip() for line in str(error).splitlines()[1:] if line.strip())
        reason = textwrap.shorten(reason, 300, placeholder=' ...')
        raise ExportError(
            f'checkpoint {cfg.load_from} does not fit the config: {reason}. Specify the config '
            'that it was trained with.'
        ) from error
    dataset_meta = checkpoint.get('meta', {}).get('dataset_meta')
    if not isinstance(dataset_meta, dict):  # as in converted checkpoints
        dataset = next(data_sets(cfg.test_dataloader.dataset))
        dataset_meta = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True)).metainfo
    return model.eval(), dict(classes=list(dataset_meta['classes']), scale=scale)


def data_sets(node: ConfigDict) -> Iterator[ConfigDict]:
    """Yield every data set at or below a config node, inside any wrappers."""
    inside = [*node.get('datasets', []), *filter(None, [node.get('dataset')])]
    for dataset in inside:
        yield from data_sets(dataset)
    if not inside:
        yield node


def image_scale(cfg: Config) -> list[int]:
    """The size that a config's test images are resized to: long and short side, in pixels.

    Raises:
        ExportError: If no transform of the pipeline, inside any wrappers, is a ``Resize`` that
            keeps the ratio.
    """
    key = 'test_dataloader.dataset.pipeline'
    for dataset in data_sets(cfg.test_dataloader.dataset):
        try:
            found = list(_transforms(Compose([TRANSFORMS.build(t) for t in dataset.pipeline])))
        except Exception as error:
            raise ExportError(f'{key}: {one_line(error)}. Correct it in the config.') from error
        for transform in found:
            if isinstance(transform, Resize) and transform.keep_ratio and transform.scale:
                return sorted(transform.scale)[::-1]
    raise ExportError(
        f'{key} has no Resize with scale and keep_ratio=True: without one, the input size of '
        'the images is unknown.'
    )


def _transforms(transform: object) -> Iterator[object]:
    """Yield a transform and all transforms inside it."""
    yield transform
    inside = getattr(transform, 'transforms', [])
    for each in inside if isinstance(inside, list) else [inside]:
        yield from _transforms(each)


def trace(model: SMCADETR | SMCADINO) -> ExportedProgram:
    """Trace a detector with dynamic batch size, height and width.

    Args:
        model: The detector, on the CPU.

    Returns:
        The program of :meth:`DeployedSMCA.forward`.

    Raises:
        ExportError: If the detector cannot be exported.
    """
    height, width = TRACED_SIZE
    images = torch.zeros((2, height, width, 3), dtype=torch.uint8)
    sizes = torch.tensor([(height, width), (height // 2, width // 2)])
    free = torch.export.Dim.DYNAMIC
    return torch.export.export(
        DeployedSMCA(model).eval(),
        (images, sizes),
        dynamic_shapes=({0: free, 1: free, 2: free}, {0: free}),
        strict=False,
    )
