"""An ONNX graph beside the detector that it was made of, on the same images.

The detector runs as it always does, by MMDetection's own path, the graph in onnxruntime on the CPU.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import onnx
import onnxruntime
import torch
from mmdet.structures import DetDataSample
from scipy.optimize import linear_sum_assignment

from mmsmca.datasets.shapes import draw_image
from mmsmca.denormals import switched_on
from mmsmca.models import SMCADETR

from .onnx_export import OUTPUTS

LEVELS = {
    'none': onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
    'basic': onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    'extended': onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    'all': onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
}
SCORE_TOLERANCE = 1e-4
BOX_TOLERANCE = 0.05  # pixels
# (height, width) of the images to compare with; multiples of no stride, but for the first.
CHECK_SIZES = ((256, 320), (333, 250), (161, 203))


def start_session(
    graph: onnx.ModelProto | str | Path,
    threads: int | None = None,
    level: str = 'all',
    flush_denormals: bool | None = None,
) -> onnxruntime.InferenceSession:
    """Start onnxruntime on the CPU.

    Args:
        graph: The graph, or its file.
        threads: Defaults to None: as many as PyTorch has.
        level: How much of the graph onnxruntime rewrites, a key of :data:`LEVELS`. Defaults to
            ``all``, its default.
        flush_denormals: Whether numbers too small for full precision are taken as zero. Defaults to
            None: as PyTorch is told to, see :mod:`mmsmca.denormals`.
    """
    if flush_denormals is None:
        flush_denormals = switched_on()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
    options.graph_optimization_level = LEVELS[level]
    options.add_session_config_entry('session.set_denormal_as_zero', str(int(flush_denormals)))
    source = graph.SerializeToString() if isinstance(graph, onnx.ModelProto) else str(graph)
    return onnxruntime.InferenceSession(source, options, providers=['CPUExecutionProvider'])


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
