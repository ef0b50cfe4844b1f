"""Parity with the authors' implementation: its outputs on reproducible weights."""

import golden
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from utils import build_detector

from mmsmca.checkpoints.names import convert_reference, describe_reference

CASES = [
    *(f'single_scale_{scale}' for scale in ('fixed', 'isotropic', 'independent', 'covariance')),
    'multi_scale_conv',
]
CONFIGS = {
    'single_scale': 'smca/smca_r50_8xb2-50e_coco.py',
    'multi_scale_conv': 'smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py',
}
TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}


def build(case, dtype, implementation):
    """Our model of a golden case: weights through the converter, everything else from a config."""
    tensors = {name: torch.from_numpy(x) for name, x in case.state_dict().items()}
    found = describe_reference(tensors)
    ffn_cfg = dict(feedforward_channels=found['feedforward_channels'])
    prior_cfg = dict(scale=found['scale'])
    model = build_detector(
        CONFIGS[found['architecture']],
        dict(
            num_queries=found['num_queries'],
            encoder=dict(num_layers=found['encoder_layers'], layer_cfg=dict(ffn_cfg=ffn_cfg)),
            decoder=dict(
                num_layers=found['decoder_layers'],
                layer_cfg=dict(
                    ffn_cfg=ffn_cfg,
                    cross_attn_cfg=dict(implementation=implementation),
                    spatial_prior_cfg=prior_cfg,
                ),
            ),
            bbox_head=dict(num_classes=found['num_classes']),
            test_cfg=dict(max_per_img=case.expected['det_scores'].shape[1]),
        ),
    ).to(dtype)
    model.load_state_dict(convert_reference(tensors), strict=True)
    return model.eval()


def data_samples(case, dtype):
    sizes = case.meta['sizes']
    padded = tuple(max(size) for size in zip(*sizes, strict=True))
    samples = []
    for (height, width), truth in zip(sizes, case.meta['ground_truth'], strict=True):
        boxes = bbox_cxcywh_to_xyxy(torch.tensor(truth['boxes_cxcywh'], dtype=dtype))
        boxes = boxes * torch.tensor([width, height, width, height], dtype=dtype)
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width), batch_input_shape=padded, scale_factor=(1.0, 1.0)
            )
        )
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor(truth['labels']))
        samples.append(sample)
    return samples


@pytest.fixture(scope='module', params=CASES)
def case(request):
    return golden.load(request.param)


@pytest.fixture(scope='module', params=['auto', 'explicit'])
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
        centers=inputs['references'],
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
    # MMDetection divides by the number of boxes plus float32's epsilon.
    num_boxes = sum(len(truth['labels']) for truth in case.meta['ground_truth'])
    normalisation = num_boxes / (num_boxes + float(np.finfo(np.float32).eps))
    compared = set()
    for ours, value in outputs['losses'].items():
        layer, _, term = ours.rpartition('.')
        reference = names[term] + (f'_{layer[1:]}' if layer else '')
        expected = case.meta['losses'][reference] * case.meta['loss_weights'][reference]
        expected *= normalisation
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
