"""MMDetection without mmcv's compiled operators: a stand-in for the module ``mmcv._ext``.

mmcv-lite lacks this module, in which ``mmcv.ops`` looks up its operators on import. The operators
that our detectors call are implemented here in PyTorch: those of deformable attention and the focal
loss, called on a GPU only, and ``nms``, which test-time augmentation calls on any device. Arguments
are those that mmcv passes; operators that return nothing write to their last tensor arguments.
"""

import functools
import importlib.machinery
import importlib.util
import logging
import sys
import types
from collections.abc import Callable
from typing import NoReturn

import torch
from mmengine.logging import print_log
from torch import Tensor
from torch.nn.functional import one_hot

from .errors import ConfigError

NAME = 'mmcv._ext'
REMEDY = "`make install STACK=onedl`, or `pip install 'mmsmca[onedl]'`, compiles them"


@functools.cache
def _say_slow() -> None:
    """Warn, once per process, that deformable attention is slow without its operator."""
    print_log(
        'mmcv was installed without its compiled operators. Deformable attention runs as PyTorch '
        f'code instead, which is slower: {REMEDY}.',
        logger='current',
        level=logging.WARNING,
    )


# Modules that look up operators themselves are imported inside functions.
def _deformable_attention(value: Tensor, shapes: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    from mmcv.ops.multi_scale_deform_attn import multi_scale_deformable_attn_pytorch

    return multi_scale_deformable_attn_pytorch(value, shapes.tolist(), points, weights)


def ms_deform_attn_forward(
    value: Tensor, shapes: Tensor, starts: Tensor, points: Tensor, weights: Tensor, im2col_step: int
) -> Tensor:
    """Multi-scale deformable attention.

    Args:
        value: Shape (batch, keys, heads, dimensions per head).
        shapes: Height and width per level, shape (levels, 2).
        starts: Not used: the first key of each level follows from ``shapes``.
        points: Relative (x, y), shape (batch, queries, heads, levels, points, 2).
        weights: Shape (batch, queries, heads, levels, points).
        im2col_step: Not used.

    Returns:
        Shape (batch, queries, heads * dimensions per head).
    """
    _say_slow()
    return _deformable_attention(value, shapes, points, weights)


def ms_deform_attn_backward(
    value: Tensor,
    shapes: Tensor,
    starts: Tensor,
    points: Tensor,
    weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_points: Tensor,
    grad_weights: Tensor,
    im2col_step: int,
) -> None:
    """Gradients of :func:`ms_deform_attn_forward`, which is recomputed for them."""
    _, gradients = torch.func.vjp(
        lambda value, points, weights: _deformable_attention(value, shapes, points, weights),
        value,
        points,
        weights,
    )[:2]
    results = grad_value, grad_points, grad_weights
    for result, gradient in zip(results, gradients(grad_output), strict=True):
        result.copy_(gradient)


def _focal_loss(logits: Tensor, target: Tensor, gamma: float, alpha: float) -> Tensor:
    from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss

    # Queries without an object have the number of classes as their label.
    positive = one_hot(target, logits.size(1) + 1)[:, :-1]
    return py_sigmoid_focal_loss(logits, positive, None, gamma, alpha, reduction='none')


def sigmoid_focal_loss_forward(
    logits: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Focal loss per query and class, as MMDetection calls it: without class weights.

    Args:
        logits: Shape (queries, classes).
        target: Class of each query, or the number of classes for no object. Shape (queries,).
        weight: Empty tensor.
        output: Receives the loss, shape (queries, classes).
        gamma: Exponent of the modulating factor.
        alpha: Weight of positives; that of negatives is 1 - ``alpha``.
    """
    output.copy_(_focal_loss(logits, target, gamma, alpha))


def sigmoid_focal_loss_backward(
    logits: Tensor, target: Tensor, weight: Tensor, grad_logits: Tensor, gamma: float, alpha: float
) -> None:
    """Gradient of the sum of :func:`sigmoid_focal_loss_forward`."""
    loss, gradient = torch.func.vjp(lambda x: _focal_loss(x, target, gamma, alpha), logits)[:2]
    grad_logits.copy_(*gradient(torch.ones_like(loss)))


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Non-maximum suppression, with torchvision if that is installed.

    Args:
        boxes: (x1, y1, x2, y2), shape (boxes, 4).
        scores: Shape (boxes,).
        iou_threshold: A box is removed if its IoU with a kept box of higher score exceeds this.
        offset: Pixels to add to x2 - x1 and y2 - y1 for the width and height of a box.

    Returns:
        Indices of the kept boxes, by descending score.
    """
    boxes = torch.cat([boxes[:, :2], boxes[:, 2:] + offset], dim=1)
    try:
        from torchvision.ops import nms as torchvision_nms
    except ImportError:
        from mmdet.structures.bbox import bbox_overlaps
    else:
        return torchvision_nms(boxes, scores, iou_threshold)
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order].cpu()
    stays = torch.ones(len(boxes), dtype=torch.bool)
    for i, box in enumerate(boxes):
        if stays[i]:
            stays[i + 1 :] &= bbox_overlaps(box[None], boxes[i + 1 :])[0] <= iou_threshold
    return order[stays.to(order.device)]


OPERATORS = {
    function.__name__: function
    for function in (
        ms_deform_attn_forward,
        ms_deform_attn_backward,
        sigmoid_focal_loss_forward,
        sigmoid_focal_loss_backward,
        nms,
    )
}


class _Operators(types.ModuleType):
    """A module with every operator: one of ``OPERATORS``, or one that raises ConfigError."""

    def __getattr__(self, name: str) -> Callable:
        # Python and other tools look up private names in every module.
        if name.startswith('_'):
            raise AttributeError(name)

        def missing(*args: object, **kwargs: object) -> NoReturn:
            raise ConfigError(
                f'mmcv was installed without its compiled operators, of which {name} is needed: '
                f'{REMEDY}.'
            )

        return OPERATORS.get(name, missing)


def provide_operators() -> None:
    """Install the stand-in as ``mmcv._ext`` if mmcv's operators are missing; else do nothing.

    The stand-in has no loader, so MMEngine and mmcv still report that the operators are missing.
    """
    if NAME not in sys.modules and importlib.util.find_spec(NAME) is None:
        module = _Operators(NAME)
        module.__spec__ = importlib.machinery.ModuleSpec(NAME, loader=None)
        sys.modules[NAME] = module
