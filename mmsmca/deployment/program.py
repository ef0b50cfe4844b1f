"""SMCA as a tensor program, from images as OpenCV reads them to boxes in pixels.

The detector itself is unchanged: :class:`DeployedSMCA` adds its own pre- and postprocessing and
calls the detector's parts, with every size taken from tensors. ``torch.export`` traces it, and the
traced program is converted for ONNX and OpenVINO.
"""

import copy
from collections.abc import Callable, Sequence
from operator import eq, getitem
from typing import Any

import torch
import torch.nn.functional as F
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models import DetDataPreprocessor
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from packaging.specifiers import SpecifierSet
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx.experimental.symbolic_shapes import statically_known_true

from mmsmca.errors import UserError
from mmsmca.models import SMCADETR, SMCADINO, SMCADINOHead, SMCAHead
from mmsmca.models.layers.hybrid_encoder import ConvLayer

# torch.export of earlier versions fails to trace the detectors or to convert them.
TORCH = SpecifierSet('>=2.9', prereleases=True)
INPUTS = ('images', 'sizes')
OUTPUTS = ('boxes', 'scores', 'labels')
# Modules that may run in lower precision. Boxes, priors and query selection may not.
FAST_MODULES = ('model.backbone', 'model.neck', 'model.encoder')
# Height and width of the images used for tracing; the program accepts other sizes too.
TRACED_SIZE = (256, 320)


class ExportError(UserError):
    """A model that cannot be exported; the message says what to do."""


class ChannelsFirstConvLayer(nn.Module):
    """:class:`.ConvLayer` without transposes around its norm, for inference.

    Subtracting the mean over the channels is linear, so the convolution does it.

    Args:
        layer: The layer, which is not changed.
    """

    def __init__(self, layer: ConvLayer) -> None:
        super().__init__()
        self.conv, norm = copy.deepcopy(layer.conv), layer.norm
        self.weight, self.bias = (
            nn.Parameter(x.detach()[:, None, None]) for x in (norm.weight, norm.bias)
        )
        with torch.no_grad():
            self.conv.weight -= self.conv.weight.mean(dim=0, keepdim=True)
        self.eps, self.act = norm.eps, layer.act

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H', W')."""
        x = self.conv(x)
        variance = (x * x).mean(dim=1, keepdim=True)
        return self.act(x * (variance + self.eps).rsqrt() * self.weight + self.bias)


class RectangularEncoding(nn.Module):
    """A position encoding that encodes every row and every column once.

    It gives padding the encoding of its row and column, which nothing reads.

    Args:
        encoding: MMDetection's sine encoding; masks are of images in the upper left corner.
    """

    def __init__(self, encoding: nn.Module) -> None:
        super().__init__()
        self.encoding = encoding

    def forward(self, mask: Tensor) -> Tensor:
        """Encode the cells, (B, C, H, W), from a mask that is true in the padding, (B, H, W)."""
        of_rows, _ = self.encoding(mask[:, :, :1]).chunk(2, dim=1)
        _, of_columns = self.encoding(mask[:, :1]).chunk(2, dim=1)
        shape = (-1, -1, *mask.shape[-2:])
        return torch.cat((of_rows.expand(shape), of_columns.expand(shape)), dim=1)


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
        self.model: SMCADETR | SMCADINO = copy.deepcopy(model).eval()
        self.model.positional_encoding = RectangularEncoding(self.model.positional_encoding)
        for module in [*self.model.encoder.modules()]:
            for name, layer in module.named_children():
                if isinstance(layer, ConvLayer):
                    module.register_module(name, ChannelsFirstConvLayer(layer))

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
            for level, stride in zip(levels, model.strides, strict=True)
        ]
        encoded = model.forward_encoder(model.flatten_maps(levels, masks))
        decoder_inputs, _ = model.pre_decoder(**encoded)
        image_sizes = sizes.flip(1).to(torch.float32)
        decoded = model.forward_decoder(**decoder_inputs, image_sizes=image_sizes)
        logits, boxes = model.bbox_head(**decoded)
        return self._best(logits[-1].sigmoid(), boxes[-1], image_sizes)

    def _normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Normalise and pad images like the data preprocessor; (B, 3, H', W')."""
        preprocessor = self.model.data_preprocessor
        images = images.permute(0, 3, 1, 2)
        if preprocessor._channel_conversion:
            images = images.flip(1)
        images = images.to(torch.float32)
        if preprocessor._enable_normalize:
            images = (images - preprocessor.mean) / preprocessor.std
        value, divisor = float(preprocessor.pad_value), preprocessor.pad_size_divisor
        padding = _beyond(images.shape[-2:], sizes, 1)
        images = images.masked_fill(padding.unsqueeze(1), value)
        if divisor == 1:
            return images
        # OpenVINO's converter has no rule for remainders.
        bottom, right = [
            divisor * ((side + divisor - 1) // divisor) - side for side in images.shape[-2:]
        ]
        return F.pad(images, (0, right, 0, bottom), value=value)

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
    preprocessor: Any = model.data_preprocessor
    if type(preprocessor) is not DetDataPreprocessor:
        raise ExportError('model.data_preprocessor must be a DetDataPreprocessor to be exported.')
    if getattr(model.backbone, 'has_windows', False) and preprocessor.pad_size_divisor == 1:
        raise ExportError(
            'model.backbone pads images as their size demands, which a program cannot follow: set '
            'model.data_preprocessor.pad_size_divisor=32 to export it.'
        )


def check_pytorch() -> None:
    """Raise an ExportError if this PyTorch cannot trace the detectors."""
    if torch.__version__ not in TORCH:
        raise ExportError(
            f'torch {torch.__version__} cannot export the detectors: install torch{TORCH}. '
            'Checkpoints of earlier versions can be exported with it.'
        )


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
    program = torch.export.export(
        DeployedSMCA(model).eval(),
        (images, sizes),
        dynamic_shapes=({0: free, 1: free, 2: free}, {0: free}),
        strict=False,
    )
    _keep_levels(program.graph_module)
    return program


def _keep_levels(module: torch.fx.GraphModule) -> None:
    """Remove concatenations of levels that are only split again, and what they were reshaped for.

    Runtimes copy all cells for each, as they do not know that the sizes are the same.
    """
    aten = torch.ops.aten

    def source(node: Any, *targets: Callable) -> Any:
        """Input of the first of a chain of operations that ends in ``node``, or None."""
        for target in targets:
            if node.target is not target:
                return None
            node = node.args[0]
        return node

    for node in module.graph.nodes:
        joined = source(node, getitem, aten.split_with_sizes.default, aten.cat.default)
        if joined is not None:
            _replace(node, joined[node.args[1]])
        joined = source(
            node,
            aten.permute.default,
            aten.unflatten.int,
            aten.flatten.using_ints,
            aten.permute.default,
        )
        if joined is not None and node.args[1] == [0, 3, 1, 2]:
            _replace(node, joined)
    module.graph.eliminate_dead_code()
    module.recompile()


def _replace(node: torch.fx.Node, other: torch.fx.Node) -> None:
    """Use another tensor in place of a node's, if both have the same shape whatever the image."""
    shape, same = node.meta['val'].shape, other.meta['val'].shape
    if len(shape) == len(same) and all(map(statically_known_true, map(eq, shape, same))):
        node.replace_all_uses_with(other)
