"""Losses of all layers at once: those of MMDetection's heads, layer by layer and image by image."""

from functools import cache

import pytest
import torch
from mmdet.models.dense_heads import DETRHead, DINOHead
from mmdet.registry import MODELS
from mmengine.structures import InstanceData
from torch.utils._python_dispatch import TorchDispatchMode
from utils import load_config

from mmsmca.errors import ConfigError

LAYERS, QUERIES, CLASSES = 3, 6, 4
METAS = [dict(img_shape=(60, 80)), dict(img_shape=(64, 48))]
CLASSIFICATION = {
    'focal': (
        dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=2.0),
        dict(type='FocalLossCost', weight=2.0),
    ),
    'quality focal': (
        dict(type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0),
        dict(type='FocalLossCost', weight=2.0),
    ),
    'ghm': (dict(type='GHMC'), dict(type='FocalLossCost', weight=2.0)),
    'softmax': (
        dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        dict(type='ClassificationCost', weight=1.0),
    ),
}
CONFIGS = {
    'smca': 'smca/smca_r50_8xb2-50e_coco.py',
    'smca-dino': 'smca_dino/smca-dino_r50_8xb2-12e_coco.py',
}
# Objects of each image: both have some, one or both have none, one has more than there are queries.
OBJECTS = [(3, 2), (0, 2), (0, 0), (9, 4)]


@pytest.fixture(autouse=True)
def float64():
    """MMDetection makes targets in the default precision."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@cache
def build(name, classification):
    cfg = load_config(CONFIGS[name]).model
    loss, cost = CLASSIFICATION[classification]
    cfg.bbox_head.update(num_classes=CLASSES, train_cfg=cfg.train_cfg)
    cfg.bbox_head.loss_cls = loss
    if classification == 'ghm':
        cfg.bbox_head.loss_bbox = dict(type='GHMR')
    cfg.bbox_head.train_cfg.assigner.match_costs[0] = cost
    if name == 'smca-dino':
        cfg.bbox_head.update(share_pred_layer=False, num_pred_layer=LAYERS + 1, as_two_stage=True)
    head = MODELS.build(cfg.bbox_head)
    head.bg_cls_weight = 0.1
    return head


def predictions(head, *shape):
    generator = torch.Generator().manual_seed(sum(shape))
    scores = torch.randn(*shape, head.cls_out_channels, generator=generator)
    boxes = torch.randn(*shape, 4, generator=generator).sigmoid()
    return scores.requires_grad_(), boxes.requires_grad_()


def objects(counts):
    generator = torch.Generator().manual_seed(0)
    images = []
    for count, meta in zip(counts, METAS, strict=True):
        height, width = meta['img_shape']
        corners = torch.rand(count, 2, 2, generator=generator)
        corners = corners.sort(dim=1).values.flatten(1)
        images.append(
            InstanceData(
                bboxes=corners * corners.new_tensor([width, height, width, height]),
                labels=torch.randint(CLASSES, (count,), generator=generator),
            )
        )
    return images


def assert_same(found, expected, inputs):
    assert list(found) == list(expected)
    for name, loss in expected.items():
        # MMDetection adds 1e-7 to the divisors.
        torch.testing.assert_close(found[name], loss.reshape(()), rtol=1e-6, atol=0, msg=name)
    sums = [
        sum(loss.sum() * (i + 1) for i, loss in enumerate(x.values())) for x in (found, expected)
    ]
    for of_input, of_reference in zip(
        *(torch.autograd.grad(x, inputs, allow_unused=True) for x in sums), strict=True
    ):
        # Where there is no object, MMDetection has no gradient for boxes.
        reference = torch.zeros_like(of_input) if of_reference is None else of_reference
        torch.testing.assert_close(of_input, reference, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize('counts', OBJECTS)
@pytest.mark.parametrize('classification', CLASSIFICATION)
def test_decoder_layers(classification, counts):
    head = build('smca', classification)
    inputs = predictions(head, LAYERS, len(METAS), QUERIES)
    arguments = *inputs, objects(counts), METAS
    assert_same(head.loss_by_feat(*arguments), DETRHead.loss_by_feat(head, *arguments), inputs)


@pytest.mark.parametrize('counts', OBJECTS)
@pytest.mark.parametrize('classification', [x for x in CLASSIFICATION if x != 'softmax'])
@pytest.mark.parametrize('groups', [0, 2])
@pytest.mark.parametrize('stages', [1, 2])
def test_proposals_and_denoising(classification, counts, groups, stages):
    head = build('smca-dino', classification)
    denoising = groups * 2 * max(counts)
    decoder = predictions(head, LAYERS, len(METAS), denoising + QUERIES)
    encoder = predictions(head, len(METAS), 15) if stages == 2 else (None, None)
    meta = dict(num_denoising_queries=denoising, num_denoising_groups=max(groups, 1))
    arguments = *decoder, *encoder, objects(counts), METAS, meta if groups else None
    inputs = [x for x in (*decoder, *encoder) if x is not None]
    assert_same(head.loss_by_feat(*arguments), DINOHead.loss_by_feat(head, *arguments), inputs)


def test_the_weight_of_no_object_is_detrs():
    softmax = dict(type='CrossEntropyLoss', bg_cls_weight=0.1, use_sigmoid=False, class_weight=2.0)
    ours, theirs = (
        MODELS.build(dict(type=kind, num_classes=3, loss_cls=dict(softmax)))
        for kind in ('SMCAHead', 'DETRHead')
    )
    assert ours.loss_cls.class_weight == theirs.loss_cls.class_weight.tolist()
    assert ours.bg_cls_weight == theirs.bg_cls_weight == 0.1


@pytest.mark.parametrize('name', CONFIGS)
def test_another_assigner_is_refused(name):
    """It would never be called."""
    cfg = load_config(CONFIGS[name]).model
    cfg.bbox_head.train_cfg = cfg.train_cfg
    cfg.bbox_head.train_cfg.assigner = dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5)
    with pytest.raises(ConfigError, match="^train_cfg.assigner.type='MaxIoUAssigner': SMCA"):
        MODELS.build(cfg.bbox_head)


class Counter(TorchDispatchMode):
    """Counts operations that are not views."""

    operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += not func.is_view
        return func(*args, **(kwargs or {}))


def operations(call, *arguments):
    with Counter() as counter:
        call(*arguments)
    return counter.operations


def test_operations_do_not_grow_with_the_layers():
    head = build('smca', 'quality focal')
    few, many = (
        (*predictions(head, layers, len(METAS), QUERIES), objects((3, 2)), METAS)
        for layers in (2, 12)
    )
    # Views aside: every layer's entries are views of one result.
    assert operations(head.loss_by_feat, *many) == operations(head.loss_by_feat, *few)
    assert (
        operations(head.loss_by_feat, *many) < operations(DETRHead.loss_by_feat, head, *many) / 10
    )
