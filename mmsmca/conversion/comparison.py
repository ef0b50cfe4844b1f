"""How much of one detector's detections another finds."""

from collections.abc import Iterable

import torch
from mmdet.structures.bbox import bbox_overlaps
from mmengine.model import BaseModel

# Detections below this score are not compared.
MIN_SCORE = 0.3


@torch.no_grad()
def compare(teacher: BaseModel, student: BaseModel, batches: Iterable[dict]) -> dict[str, float]:
    """Compare the detections of two detectors.

    Args:
        teacher: Detector whose detections of a score of at least ``MIN_SCORE`` are looked for.
        student: Detector that should find them: of the same class, with an IoU of at least 0.5.
        batches: Batches of images.

    Returns:
        Number of ``detections`` of the teacher and of those that are ``found``, and of the latter,
        medians of ``iou`` and of the absolute difference of ``score``; NaN if there are none.
    """
    ious, differences, total = [], [], 0
    for batch in batches:
        pairs = zip(teacher.test_step(batch), student.test_step(batch), strict=True)
        for theirs, own in ((a.pred_instances, b.pred_instances) for a, b in pairs):
            theirs = theirs[theirs.scores >= MIN_SCORE]
            total += len(theirs)
            if not len(theirs) or not len(own):
                continue
            overlaps = bbox_overlaps(theirs.bboxes, own.bboxes)
            overlaps[theirs.labels[:, None] != own.labels] = 0
            best, index = overlaps.max(-1)
            same = best >= 0.5
            ious.append(best[same])
            differences.append((theirs.scores - own.scores[index])[same].abs())
    iou, difference = (torch.cat(x) if x else torch.empty(0) for x in (ious, differences))
    return dict(
        detections=total,
        found=len(iou),
        iou=iou.median().item(),
        score=difference.median().item(),
    )
