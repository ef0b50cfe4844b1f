"""The default evaluator gives pycocotools' numbers, whatever code computes them."""

import importlib.util
import subprocess
import sys

import numpy as np
import pytest
import torch
from mmdet.evaluation import CocoMetric
from mmdet.registry import METRICS
from utils import ROOT, load_config

from mmsmca.datasets.shapes import SHAPES_CLASSES, Shapes
from mmsmca.engine import coco_metric


@pytest.fixture(scope='module')
def annotations(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp('shapes') / 'set'
    # Crowds and images without objects among them.
    Shapes(num_train=1, num_val=120, size=64, max_objects=6, seed=1).write(folder)
    return str(folder / 'annotations/instances_val.json')


def detections(annotations: str) -> list[dict]:
    """What a middling detector finds: boxes nearby, some classes wrong, some objects made up."""
    rng = np.random.default_rng(0)
    api = CocoMetric(ann_file=annotations)._coco_api
    samples = []
    for image in api.loadImgs(api.getImgIds()):
        objects = api.loadAnns(api.getAnnIds(image['id']))
        boxes = [o['bbox'] for o in objects for _ in range(2)]
        boxes += rng.uniform(4, 30, (5, 4)).tolist()
        boxes = np.array(boxes) + rng.normal(0, 2, (len(boxes), 4))
        boxes[:, 2:] = boxes[:, :2] + boxes[:, 2:].clip(1)
        labels = [o['category_id'] - 1 for o in objects for _ in range(2)]
        labels += rng.integers(0, len(SHAPES_CLASSES), 5).tolist()
        labels = [label if rng.random() < 0.8 else 0 for label in labels]
        predicted = dict(
            bboxes=torch.tensor(boxes, dtype=torch.float32),
            scores=torch.tensor(rng.random(len(boxes)).round(2), dtype=torch.float32),
            labels=torch.tensor(labels),
        )
        samples.append(dict(img_id=image['id'], ori_shape=(64, 64), pred_instances=predicted))
    return samples


def evaluate(metric: CocoMetric, samples: list[dict]) -> dict[str, float]:
    metric.dataset_meta = dict(classes=SHAPES_CLASSES)
    metric.process({}, samples)
    return metric.evaluate(len(samples))


def test_numbers_are_those_of_pycocotools(annotations: str):
    samples = detections(annotations)
    options = dict(ann_file=annotations, metric='bbox', classwise=True)
    own = evaluate(METRICS.build(dict(type='FastestCocoMetric', **options)), samples)
    reference = evaluate(CocoMetric(**options), samples)
    assert own.keys() == reference.keys() and len(own) > 6
    assert 0.05 < reference['coco/bbox_mAP'] < 0.95
    # NaN is what neither has an object of.
    np.testing.assert_array_equal(list(own.values()), list(reference.values()))


def test_without_faster_coco_eval_it_is_pycocotools(monkeypatch):
    monkeypatch.setattr(coco_metric, 'find_spec', lambda name: None)
    assert coco_metric.fastest_metric() is CocoMetric
    # Or with an MMDetection that has no metric for it.
    monkeypatch.setattr(coco_metric, 'find_spec', importlib.util.find_spec)
    monkeypatch.setattr(METRICS, 'get', lambda name: None)
    assert coco_metric.fastest_metric() is CocoMetric


@pytest.mark.parametrize(
    'config', ['smca/smca_r50_8xb2-50e_coco.py', 'small/smca_r18w16_1xb8-11e_shapes128.py']
)
def test_configs_evaluate_with_it(config: str):
    cfg = load_config(config)
    assert cfg.val_evaluator.type == cfg.test_evaluator.type == 'FastestCocoMetric'


def test_import_says_nothing_of_what_is_missing():
    """Even without faster-coco-eval, of which MMDetection warns; and of OneDL it prints twice."""
    code = "import sys; sys.modules['faster_coco_eval'] = None; import mmsmca, mmdet.apis"
    command = [sys.executable, '-W', 'ignore::DeprecationWarning', '-c', code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'OneDL' not in done.stdout + done.stderr
    assert 'faster_coco_eval' not in done.stdout + done.stderr
