"""COCO evaluation with the fastest implementation that is installed; results are the same."""

from importlib.util import find_spec

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS


def fastest_metric() -> type[CocoMetric]:
    """MMDetection's metric based on faster-coco-eval if installed, else on pycocotools.

    Before onedl-mmdetection 3.5, MMDetection has only the latter.
    """
    faster = METRICS.get('FasterCocoMetric')
    return CocoMetric if faster is None or find_spec('faster_coco_eval') is None else faster


METRICS.register_module(name='FastestCocoMetric', module=fastest_metric())
