"""Parity with the authors' implementation: its outputs on reproducible weights."""

import golden
import numpy as np
import pytest
import torch
from golden import CASES, build, data_samples

TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}


@pytest.fixture(scope='module', params=CASES)
def case(request):
    return golden.load(request.param)


@pytest.fixture(scope='module', params=['folded', 'explicit'])
def implementation(request):
    return request.param


@pytest.fixture(scope='module', params=[torch.float64, torch.float32], ids=['float64', 'float32'])
def outputs(request, case, implementation):
    """Everything that the tests compare, from one pass."""
    dtype = request.param
    model, samples = build(case, dtype, implementation), data_samples(case, dtype)
    images = torch.from_numpy(case.images()).to(dtype)
    with torch.no_grad():
        inputs = model.forward_transformer(model.extract_feat(images), samples)
        scores, boxes = model.bbox_head(**inputs)
        losses = model.bbox_head.loss(**inputs, batch_data_samples=samples)
        detections = model.bbox_head.predict(**inputs, batch_data_samples=samples)
    return dict(
        scores=scores,
        boxes=boxes,
        centers=inputs['references'][0],
        losses=losses,
        detections=detections,
        tolerance=TOLERANCE[dtype],
    )


def error(actual, expected):
    return np.abs(np.asarray(actual, np.float64) - expected).max()


def test_every_decoder_layer(case, outputs):
    assert error(outputs['scores'], case.expected['cls']) < outputs['tolerance']
    assert error(outputs['boxes'], case.expected['box']) < outputs['tolerance']
    # Multi scale records the logits for the first layer only.
    logits = case.expected['points'].reshape(-1, *outputs['centers'].shape)[0]
    assert error(outputs['centers'], logits) < outputs['tolerance']


def test_every_loss_term(case, outputs):
    names = dict(loss_cls='loss_ce', loss_bbox='loss_bbox', loss_iou='loss_giou')
    compared = set()
    for ours, value in outputs['losses'].items():
        layer, _, term = ours.rpartition('.')
        reference = names[term] + (f'_{layer[1:]}' if layer else '')
        expected = case.meta['losses'][reference] * case.meta['loss_weights'][reference]
        assert abs(value.item() - expected) < outputs['tolerance'] * max(1.0, expected), ours
        compared.add(reference)
    assert compared == set(case.meta['losses'])


def test_detections(case, outputs):
    for i, (height, width) in enumerate(case.meta['sizes']):
        found = outputs['detections'][i]
        expected = case.expected['det_boxes'][i]
        # MMDetection clips boxes to the image, the reference does not.
        expected = np.clip(expected, 0, [width, height, width, height])
        assert found.labels.tolist() == case.expected['det_labels'][i].tolist()
        assert error(found.scores, case.expected['det_scores'][i]) < outputs['tolerance']
        assert error(found.bboxes, expected) < outputs['tolerance'] * max(height, width)
