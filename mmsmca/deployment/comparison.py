"""Comparison of an exported detector with the original on the same images.

The original runs through MMDetection's own inference path, the exported detector in its runtime.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from unittest.mock import patch

import cv2
import numpy as np
import torch
from mmdet.structures import DetDataSample
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mmsmca.datasets.shapes import Shapes
from mmsmca.models import SMCADETR, SMCADINO

from .runtimes import Detect, Detections

# An image of a batch, and two of its cells.
Tie = tuple[int, int, int]

SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 0.05  # pixels
# Difference of two cells' best class logits within which rounding decides which is selected first.
TIE = 1e-5
# (height, width) of the images to compare on; only the first is a multiple of the strides.
CHECK_SIZES = ((256, 320), (333, 250), (161, 203))


def check_images() -> list[np.ndarray]:
    """Generate images to compare on, one of each size in :data:`CHECK_SIZES`."""
    images = []
    for index, (height, width) in enumerate(CHECK_SIZES):
        image, _ = Shapes(size=max(height, width), max_objects=4).draw('val', index)
        images.append(cv2.resize(image[..., ::-1], (width, height)))
    return images


def check_batches(images: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
    """Batches to compare on: every image alone, and every pair of images, to be padded."""
    return [list(batch) for count in (1, 2) for batch in combinations(images, count)]


def run_torch(model: SMCADETR | SMCADINO, images: Sequence[np.ndarray]) -> Detections:
    """Detect objects through MMDetection's own inference path.

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


@dataclass(frozen=True)
class Difference:
    """How far an exported detector deviates from the original on a batch.

    Attributes:
        sizes: Height and width of the images.
        scores: Largest difference between scores, both of matched detections and of equal ranks.
        boxes: Largest difference between box coordinates of matched detections, in pixels.
        unmatched: Number of exported detections without a match of the same label.
        cost: Sum over all detections of their differences in tolerances.
    """

    sizes: tuple[tuple[int, int], ...]
    scores: float
    boxes: float
    unmatched: int
    cost: float

    @property
    def tolerable(self) -> bool:
        """Whether all differences are within the tolerances."""
        return (
            self.unmatched == 0 and self.scores <= SCORE_TOLERANCE and self.boxes <= BOX_TOLERANCE
        )


def compare(model: SMCADETR | SMCADINO, detect: Detect, images: Sequence[np.ndarray]) -> Difference:
    """Compare an exported detector with the original.

    Every exported detection is matched with one of all (query, class) pairs of the original, as it
    is arbitrary which of several equal scores make it into the output. Comparing scores by rank
    then ensures that no detection is missing.

    It is just as arbitrary in which order SMCA-DINO selects cells of equal scores as queries, but
    all detections depend on it. So if detections differ, cells are exchanged in the original whose
    scores are equal up to rounding, and what brings it closer to the exported detector is kept.

    Args:
        model: The original detector.
        detect: The exported detector.
        images: A batch of images, BGR, (H, W, 3), uint8.
    """
    exported = detect(images)
    with _selection(model) as (exchanged, scores):
        best = _difference(model, images, exported)
        for tie in _ties(scores, model.num_queries) if not best.tolerable else ():
            exchanged.append(tie)
            difference = _difference(model, images, exported)
            if difference.cost < best.cost:
                best = difference
            else:
                exchanged.remove(tie)
    return best


@contextmanager
def _selection(model: SMCADETR | SMCADINO) -> Iterator[tuple[list[Tie], list[Tensor]]]:
    """Control which cells a detector selects as queries.

    Yields:
        Cells to exchange, empty at first, and scores of all cells, (B, N), one tensor for each time
        that the detector computed them.
    """
    exchanged: list[Tie] = []
    computed: list[Tensor] = []

    def exchange(scores: Tensor) -> Tensor:
        computed.append(scores)
        scores = scores.clone()
        for image, cell, other in exchanged:
            scores[image, [cell, other]] = scores[image, [other, cell]]
            # If both were equal, they would stay so.
            scores[image, other] = scores[image, other].nextafter(scores.new_tensor(torch.inf))
        return type(model).best(model, scores)

    if not getattr(model, 'as_two_stage', False):
        yield exchanged, computed
        return
    with patch.object(model, 'best', exchange):
        yield exchanged, computed


def _ties(computed: Sequence[Tensor], num_queries: int) -> list[Tie]:
    """Neighbours in the order of selection whose scores are equal up to rounding, closest first."""
    ties = []
    for image, scores in enumerate(computed[-1] if computed else ()):
        scores, order = scores.sort(descending=True)
        gaps = -scores[: num_queries + 1].diff()
        for rank in (gaps <= TIE).nonzero().flatten().tolist():
            cell, other = order[rank : rank + 2].tolist()
            # What cannot be selected is a copy of the lowest: exchanging it changes nothing.
            if scores[rank] > scores[-1]:
                ties.append((gaps[rank].item(), (image, cell, other)))
                if not gaps[rank]:  # Either may have been selected first.
                    ties.append((0.0, (image, other, cell)))
    return [tie for _, tie in sorted(ties)]


def _difference(
    model: SMCADETR | SMCADINO, images: Sequence[np.ndarray], exported: Detections
) -> Difference:
    head = model.bbox_head
    test_cfg, head.test_cfg = head.test_cfg, dict(max_per_img=model.num_queries * head.num_classes)
    try:
        expected = run_torch(model, images)
    finally:
        head.test_cfg = test_cfg
    pairs = [_match(*both) for both in zip(expected, exported, strict=True)]
    scores, boxes, unmatched, costs = zip(*pairs, strict=True)
    sizes = tuple(image.shape[:2] for image in images)
    return Difference(sizes, max(scores), max(boxes), sum(unmatched), sum(costs))


def _match(
    expected: tuple[np.ndarray, ...], exported: tuple[np.ndarray, ...]
) -> tuple[float, float, int, float]:
    """Match an image's detections; return what :class:`Difference` says of it."""
    boxes, scores, labels = expected
    exported_boxes, exported_scores, exported_labels = exported
    of_order = np.abs(exported_scores - scores[: len(exported_scores)]).max(initial=0)

    score_gaps = np.abs(exported_scores[:, None] - scores)
    box_gaps = np.abs(exported_boxes[:, None] - boxes).max(axis=-1)
    costs = np.maximum(score_gaps / SCORE_TOLERANCE, box_gaps / BOX_TOLERANCE)
    costs[exported_labels[:, None] != labels] = 1e9
    pairs = linear_sum_assignment(costs)
    same = costs[pairs] < 1e9
    return (
        float(max(of_order, score_gaps[pairs][same].max(initial=0))),
        float(box_gaps[pairs][same].max(initial=0)),
        int((~same).sum()),
        float(costs[pairs].sum()),
    )
