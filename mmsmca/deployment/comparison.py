"""Comparison of an exported detector with the original on the same images.

The original runs through MMDetection's own inference path, the exported detector in its runtime.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import cv2
import numpy as np
import torch
from mmdet.registry import DATASETS, METRICS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment

from mmsmca.datasets.shapes import Shapes
from mmsmca.models import SMCADETR

from .runtimes import Detect, Detections

SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 0.05  # pixels
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


def run_torch(model: SMCADETR, images: Sequence[np.ndarray]) -> Detections:
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
    """

    sizes: tuple[tuple[int, int], ...]
    scores: float
    boxes: float
    unmatched: int

    @property
    def tolerable(self) -> bool:
        """Whether all differences are within the tolerances."""
        return (
            self.unmatched == 0 and self.scores <= SCORE_TOLERANCE and self.boxes <= BOX_TOLERANCE
        )


def compare(model: SMCADETR, detect: Detect, images: Sequence[np.ndarray]) -> Difference:
    """Compare an exported detector with the original.

    Every exported detection is matched with one of all (query, class) pairs of the original, as it
    is arbitrary which of several equal scores make it into the output. Comparing scores by rank
    then ensures that no detection is missing.

    Args:
        model: The original detector.
        detect: The exported detector.
        images: A batch of images, BGR, (H, W, 3), uint8.
    """
    head = model.bbox_head
    test_cfg, head.test_cfg = head.test_cfg, dict(max_per_img=model.num_queries * head.num_classes)
    try:
        expected = run_torch(model, images)
    finally:
        head.test_cfg = test_cfg
    pairs = [_match(*both) for both in zip(expected, detect(images), strict=True)]
    scores, boxes, unmatched = zip(*pairs, strict=True)
    sizes = tuple(image.shape[:2] for image in images)
    return Difference(sizes, max(scores), max(boxes), sum(unmatched))


def _match(
    expected: tuple[np.ndarray, ...], found: tuple[np.ndarray, ...]
) -> tuple[float, float, int]:
    """Match an image's detections; return score and box differences and the number unmatched."""
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


def average_precision(detect: Detect, cfg: Config) -> float:
    """Box AP of an exported detector on a config's test data, with its pipeline and evaluator.

    Args:
        detect: The exported detector.
        cfg: Config of the detector.

    Returns:
        COCO's AP over IoU 0.50 to 0.95, in [0, 1].
    """
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    metric = METRICS.build(cfg.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    for data in map(dataset.__getitem__, range(len(dataset))):
        sample = data['data_samples']
        image = data['inputs'].permute(1, 2, 0).numpy()
        boxes, scores, labels = map(torch.from_numpy, detect([image])[0])
        boxes = boxes / torch.tensor(sample.scale_factor).repeat(2)
        sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        metric.process({}, [sample.to_dict()])
    return metric.evaluate(len(dataset))['coco/bbox_mAP']
