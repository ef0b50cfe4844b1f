"""Losses of all decoder layers at once.

MMDetection's heads match and compute the losses of one decoder layer and one image after the other:
in DINO, that is half of all operations of a training step. On a GPU, launching operations takes
longer than computing them unless the batch is large. Here, the losses are the same, but the
matching costs of an image are computed for all layers together, the matcher waits for the GPU once,
and each of the usual losses is one call.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmdet.models.losses import (
    CrossEntropyLoss,
    FocalLoss,
    GIoULoss,
    L1Loss,
    QualityFocalLoss,
)
from mmdet.models.task_modules import HungarianAssigner
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy, bbox_overlaps, bbox_xyxy_to_cxcywh
from mmdet.utils import InstanceList, reduce_mean
from mmengine.logging import MessageHub
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn

from mmsmca.errors import ConfigError, DivergedError

# Losses that are sums over predictions, so one call computes all layers. Others, such as GHMC,
# whose weights depend on all of its input, are called for every layer, as in MMDetection's heads.
SUMS = (CrossEntropyLoss, FocalLoss, GIoULoss, L1Loss, QualityFocalLoss)


class Targets(NamedTuple):
    """What a head's predictions should be; every layer has as many matched predictions.

    Attributes:
        labels: Class of every prediction, where the number of classes means no object,
            (layers, B, Q).
        matched: Indices of the matched predictions, flattened over layers, images and queries, in
            ascending order, (P,).
        boxes: Their boxes (cx, cy, w, h) in [0, 1] of the image content, (P, 4).
        negatives: Number of predictions of a layer that are trained as background.
    """

    labels: Tensor
    matched: Tensor
    boxes: Tensor
    negatives: int


class LayerLosses:
    """Mixin, placed before an MMDetection DETR head: the losses of all decoder layers at once.

    Losses, matching costs and their names are the head's; its ``loss_by_feat_single`` and
    ``get_targets`` are not called. ``loss_cls`` may have DETR's ``bg_cls_weight`` and a number as
    ``class_weight``. If training diverges, the error names the step and the learning rate;
    MMDetection's heads fail with "matrix contains invalid numeric entries".

    Raises:
        ConfigError: If ``train_cfg.assigner`` is not a ``HungarianAssigner``, whose costs are used.
    """

    assigner: Any
    loss_cls: nn.Module
    loss_bbox: nn.Module
    loss_iou: nn.Module
    num_classes: int
    bg_cls_weight: float
    sync_cls_avg_factor: bool

    def __init__(self, *args, loss_cls: dict, **kwargs) -> None:
        background = loss_cls.get('bg_cls_weight')
        if background is not None:  # MMDetection's DETRHead reads it in no subclass.
            weights = [loss_cls.get('class_weight', 1.0)] * kwargs['num_classes'] + [background]
            loss_cls = dict(loss_cls, class_weight=weights)
            del loss_cls['bg_cls_weight']
        super().__init__(*args, loss_cls=loss_cls, **kwargs)  # type: ignore[call-arg]
        if background is not None:
            self.bg_cls_weight = background
        kind = type(getattr(self, 'assigner', None))  # A head that only predicts has none.
        if kind not in (HungarianAssigner, type(None)):
            raise ConfigError(
                f'train_cfg.assigner.type={kind.__name__!r}: {type(self).__name__} matches all '
                "layers at once, with the costs of a 'HungarianAssigner', and supports no other"
            )

    def matched_losses(
        self,
        scores: Tensor,
        boxes: Tensor,
        objects: InstanceList,
        metas: Sequence[dict],
        prefix: str = '',
    ) -> dict[str, Tensor]:
        """Match the predictions of every layer, and compute the losses.

        Args:
            scores: Class logits, (layers, B, Q, classes).
            boxes: Boxes (cx, cy, w, h) in [0, 1] of the image content, (layers, B, Q, 4).
            objects: Objects of every image, with ``labels`` and ``bboxes`` (x, y, x, y) in pixels.
            metas: Metadata of every image, with ``img_shape``.
            prefix: Inserted into the names, such as ``enc_``. Defaults to none.

        Returns:
            Losses by name: ``loss_cls``, ``loss_bbox`` and ``loss_iou`` of the last layer,
            ``d0.loss_cls`` and so on of the others.

        Raises:
            DivergedError: If a prediction is not finite. The message names step, learning rate and
                remedy.
        """
        targets = self.match(scores, boxes, objects, metas)
        return self.named_losses(scores, boxes, targets, metas, prefix)

    @torch.no_grad()
    def match(
        self, scores: Tensor, boxes: Tensor, objects: InstanceList, metas: Sequence[dict]
    ) -> Targets:
        """Match the predictions of every layer to the objects, one to one.

        Arguments and errors are those of :meth:`matched_losses`.
        """
        layers, batch, queries = scores.shape[:3]
        sizes = image_sizes(boxes, metas)
        costs = []
        for i, (of_image, meta) in enumerate(zip(objects, metas, strict=True)):
            # A cost belongs to a prediction and an object, whatever the layer.
            pixels = bbox_cxcywh_to_xyxy(boxes[:, i].flatten(0, 1)) * sizes[i]
            predicted = InstanceData(scores=scores[:, i].flatten(0, 1), bboxes=pixels)
            costs.append(sum(cost(predicted, of_image, meta) for cost in self.assigner.match_costs))
        finite = torch.stack([x.isfinite().all() for x in (scores, boxes)])
        # This waits for the accelerator, once.
        on_cpu = torch.cat([finite.to(boxes.dtype), *(x.flatten() for x in costs)]).cpu().numpy()
        for name, is_finite, x in zip(('score', 'box'), on_cpu, (scores, boxes), strict=False):
            if not is_finite:
                raise_diverged(name, x)
        ends = np.cumsum([cost.numel() for cost in costs]) + len(finite)
        object_of = np.full((layers, batch, queries), -1)
        first = 0
        for i, cost in enumerate(np.split(on_cpu[: ends[-1]], [len(finite), *ends[:-1]])[1:]):
            count = len(objects[i])
            for layer, of_layer in enumerate(cost.reshape(layers, queries, count)):
                rows, columns = linear_sum_assignment(of_layer)
                object_of[layer, i, rows] = first + columns
            first += count
        places = np.flatnonzero(object_of >= 0)
        indices = torch.from_numpy(np.stack((places, object_of.ravel()[places])))
        matched, matched_objects = indices.to(boxes.device)
        labels = torch.cat([x.labels for x in objects])[matched_objects]
        relative = [x.bboxes / size for x, size in zip(objects, sizes, strict=True)]
        return Targets(
            labels.new_full((scores[..., 0].numel(),), self.num_classes)
            .index_put((matched,), labels)
            .view(layers, batch, queries),
            matched,
            bbox_xyxy_to_cxcywh(torch.cat(relative))[matched_objects],
            batch * queries - len(places) // layers,
        )

    def named_losses(
        self,
        scores: Tensor,
        boxes: Tensor,
        targets: Targets,
        metas: Sequence[dict],
        prefix: str = '',
    ) -> dict[str, Tensor]:
        """Compute the losses of every layer.

        Args:
            scores: Class logits, (layers, B, Q, classes).
            boxes: Boxes (cx, cy, w, h) in [0, 1], (layers, B, Q, 4).
            targets: What they should be.
            metas: Metadata of every image, with ``img_shape``.
            prefix: Inserted into the names, such as ``dn_``. Defaults to none.

        Returns:
            Losses by name, those of the last layer first.
        """
        layers, batch, queries = scores.shape[:3]
        positives = len(targets.matched) // layers
        predicted, wanted = boxes.flatten(0, 2)[targets.matched], targets.boxes.to(boxes.dtype)
        labels = [targets.labels.flatten()]
        if isinstance(self.loss_cls, QualityFocalLoss):
            corners = (bbox_cxcywh_to_xyxy(x) for x in (predicted.detach(), wanted))
            quality = bbox_overlaps(*corners, is_aligned=True).to(scores.dtype)
            labels.append(scores.new_zeros(len(labels[0])).index_put((targets.matched,), quality))
        count = positives + self.bg_cls_weight * targets.negatives
        divisor = self._mean_over_processes(scores, count, self.sync_cls_avg_factor)
        of_class = by_layer(self.loss_cls, scores.flatten(0, 2), labels, divisor, layers)
        divisor = self._mean_over_processes(boxes, positives, True)
        if positives:
            sizes = image_sizes(boxes, metas)[targets.matched // queries % batch]
            corners, of_objects = (bbox_cxcywh_to_xyxy(x) * sizes for x in (predicted, wanted))
            of_box = by_layer(self.loss_bbox, predicted, [wanted], divisor, layers)
            of_iou = by_layer(self.loss_iou, corners, [of_objects], divisor, layers)
        else:  # Distributed training waits for the gradient of every parameter.
            of_box = of_iou = boxes.flatten(1).sum(1) * 0
        losses = {}
        for layer in (layers - 1, *range(layers - 1)):
            name = prefix if layer == layers - 1 else f'd{layer}.{prefix}'
            losses[f'{name}loss_cls'] = of_class[layer]
            losses[f'{name}loss_bbox'] = of_box[layer]
            losses[f'{name}loss_iou'] = of_iou[layer]
        return losses

    @staticmethod
    def _mean_over_processes(like: Tensor, count: float, synchronized: bool) -> Tensor:
        """Mean of a count over the processes, at least one; of this process if not synchronized."""
        mean = like.new_full((1,), count)
        return (reduce_mean(mean) if synchronized else mean).clamp(min=1)


def by_layer(
    loss: nn.Module, predicted: Tensor, targets: list[Tensor], divisor: Tensor, layers: int
) -> Tensor:
    """Compute a loss of every layer, (layers,).

    Args:
        loss: One of MMDetection's losses.
        predicted: Predictions of all layers, one layer after the other, (N, ...).
        targets: What they should be, and the quality if the loss takes one, (N, ...) each.
        divisor: Divisor of the sum over a layer.
        layers: Number of layers.
    """

    def joined(targets: Sequence[Tensor]) -> Tensor | tuple[Tensor, ...]:
        return targets[0] if len(targets) == 1 else tuple(targets)

    if type(loss) in SUMS:
        single = loss(predicted, joined(targets), reduction_override='none')
        return single.reshape(layers, single.numel() // layers).sum(1) / divisor
    weight = predicted.new_ones(len(predicted) // layers, *targets[0].shape[1:])
    parts = zip(*(x.chunk(layers) for x in (predicted, *targets)), strict=True)
    return torch.stack(
        [loss(x, joined(wanted), weight, avg_factor=divisor.item()) for x, *wanted in parts]
    )


def image_sizes(like: Tensor, metas: Sequence[dict]) -> Tensor:
    """Width, height, width, height of every image, in pixels, (B, 4)."""
    return like.new_tensor([meta['img_shape'][::-1] * 2 for meta in metas])


def raise_diverged(name: str, x: Tensor) -> None:
    """Report a prediction that is not finite, with the step and the learning rate of the run."""
    value = 'NaN' if x.isnan().any() else 'infinite'
    hub = MessageHub.get_current_instance()
    step, rate = hub.runtime_info.get('iter'), hub.log_scalars.get('train/lr')
    where = ''
    if step is not None and rate is not None:
        where = f' in step {step + 1}, at a learning rate of {rate.current():.3g}'
    raise DivergedError(f'a predicted {name} is {value}{where}: {REMEDY}')


REMEDY = 'lower optim_wrapper.optimizer.lr, warm up longer, or set optim_wrapper.clip_grad'
