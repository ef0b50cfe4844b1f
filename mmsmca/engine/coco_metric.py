"""COCO's evaluation by the fastest code that is installed, with the same results."""

from importlib.util import find_spec

from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS


def fastest_metric() -> type[CocoMetric]:
    """MMDetection's metric on faster-coco-eval, or without that package the one on pycocotools.

    Before onedl-mmdetection 3.5, MMDetection has the latter only.
    """
    faster = METRICS.get('FasterCocoMetric')
    return CocoMetric if faster is None or find_spec('faster_coco_eval') is None else faster


METRICS.register_module(name='FastestCocoMetric', module=fastest_metric())
