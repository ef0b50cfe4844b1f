"""SMCA-DINO: its prior and attention against the equations, and the detector as a whole."""

import copy
import math
import re

import pytest
import torch
from mmdet.models.detectors import DINO
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.hub import get_config
from utils import ROOT

from mmsmca.models.layers.attention import common_grid, folded_attention
from mmsmca.models.layers.box_prior import BoxPrior
from mmsmca.models.layers.memory import Memory

CONFIGS = ROOT / 'configs'
STRIDES = (8, 16, 32)
SIZES = [(80, 64), (53, 41)]
BATCH, HEADS, QUERIES = 2, 4, 5


def test_box_prior_is_the_equation():
    torch.manual_seed(0)
    prior = BoxPrior(16, HEADS, STRIDES, offset=0.3, width=0.2, floor=0.4).double()
    for linear in (prior.offsets, prior.widths, prior.gates):
        torch.nn.init.normal_(linear.weight)
    features = torch.randn(BATCH, QUERIES, 16, dtype=torch.float64)
    boxes = torch.rand(BATCH, QUERIES, 4, dtype=torch.float64)
    image_sizes = torch.tensor(SIZES, dtype=torch.float64)
    placed = prior(features, boxes, image_sizes)
    offsets, widths, gates = (
        linear(features).reshape(BATCH, QUERIES, HEADS, -1)
        for linear in (prior.offsets, prior.widths, prior.gates)
    )
    for image, query, head in [(0, 0, 0), (1, 3, 2)]:
        size = boxes[image, query, 2:] * image_sizes[image] / 8
        center = boxes[image, query, :2] * image_sizes[image] / 8
        at = (image, head, query)
        torch.testing.assert_close(placed.centers[at], center + offsets[image, query, head] * size)
        sigma2 = (widths[image, query, head].exp() * size) ** 2 + 0.4**2
        torch.testing.assert_close(placed.precisions[at], 1 / (2 * sigma2))
        torch.testing.assert_close(placed.gates[at], gates[image, query, head])


def test_prior_starts_around_the_box_with_equal_mass_a_level():
    prior = BoxPrior(16, 8, STRIDES, offset=0.25, width=0.25)
    prior.init_weights()
    boxes = torch.tensor([[[0.5, 0.5, 0.5, 0.4]]])
    placed = prior(torch.randn(1, 1, 16), boxes, torch.tensor([[160.0, 160.0]]))
    offsets = (placed.centers[0, :, 0] - 10) / torch.tensor([10.0, 8.0])
    torch.testing.assert_close(offsets.abs().amax(-1), torch.full((8,), 0.25))
    assert len({tuple(offset.tolist()) for offset in offsets.round(decimals=4)}) == 8
    # A quarter of the cells, four times the weight.
    torch.testing.assert_close(placed.gates[0, 0, 0].exp(), torch.tensor([1.0, 4.0, 16.0]))


def small_model(**changes):
    cfg = Config.fromfile(CONFIGS / 'smca_dino/smca-dino_r50_8xb2-12e_coco.py')
    changes = {
        'backbone.depth': 18,
        'backbone.base_channels': 8,
        'backbone.frozen_stages': -1,
        'backbone.norm_cfg.requires_grad': True,
        'backbone.init_cfg': None,
        'neck.in_channels': [16, 32, 64],
        'neck.out_channels': 64,
        'neck.num_outs': 4,
        'num_queries': 12,
        'encoder.layer_cfg.self_attn_cfg': dict(embed_dims=64, num_heads=4),
        'encoder.layer_cfg.ffn_cfg.embed_dims': 64,
        'encoder.layer_cfg.ffn_cfg.feedforward_channels': 96,
        'decoder.num_layers': 2,
        'decoder.layer_cfg.self_attn_cfg.embed_dims': 64,
        'decoder.layer_cfg.self_attn_cfg.num_heads': 4,
        'decoder.layer_cfg.cross_attn_cfg': dict(embed_dims=64, num_heads=4),
        'decoder.layer_cfg.ffn_cfg.embed_dims': 64,
        'decoder.layer_cfg.ffn_cfg.feedforward_channels': 96,
        'positional_encoding.num_feats': 32,
        'bbox_head.num_classes': 5,
        'bbox_head.embed_dims': 64,
        'dn_cfg.group_cfg.num_dn_queries': 8,
        **changes,
    }
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    model.init_weights()
    # Away from the start, where the content part and the box regression are zero.
    for parameter in (*model.decoder.parameters(), *model.bbox_head.parameters()):
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    return model


def batch_of(model, sizes, num_objects, training=True):
    data = demo_mm_inputs(
        len(sizes),
        [(3, height, width) for height, width in sizes],
        num_items=num_objects,
        num_classes=5,
        use_box_type=False,
    )
    return model.data_preprocessor(copy.deepcopy(data), training)


def loss_of(model, data):
    model.train()
    losses = model(**data, mode='loss')
    return model.parse_losses(losses)[0]


@pytest.mark.parametrize(
    'changes',
    [
        {},
        {'dn_cfg': None},
        {'as_two_stage': False},
        {'decoder.layer_cfg.spatial_prior_cfg': None},
        {'decoder.layer_cfg.spatial_prior_cfg': dict(_delete_=True, type='StaticPrior')},
        {'decoder.start_levels': [1, 0]},
    ],
    ids=[
        'smca-dino',
        'no-denoising',
        'one-stage',
        'plain-attention',
        'static-prior',
        'start-levels',
    ],
)
@pytest.mark.parametrize('num_objects', [[2, 1], [0, 0]])
def test_every_parameter_learns_with_and_without_objects(changes, num_objects):
    model = small_model(**changes)
    loss = loss_of(model, batch_of(model, [(96, 128), (80, 100)], num_objects))
    loss.backward()
    assert loss.isfinite()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def forward(model, maps, samples):
    model.eval()
    with torch.no_grad():
        inputs = model.forward_transformer(maps, samples)
        return model.bbox_head(**inputs)


def samples_of(shapes, padded):
    return [
        DetDataSample(metainfo=dict(img_shape=shape, batch_input_shape=padded)) for shape in shapes
    ]


@pytest.fixture(scope='module')
def model():
    return small_model()


def maps_of(sizes, num_images=2):
    torch.manual_seed(3)
    height, width = sizes
    return [
        torch.randn(num_images, 64, math.ceil(height / s), math.ceil(width / s))
        for s in (8, 16, 32, 64)
    ]


def test_coarser_levels_are_a_decoder_that_never_had_the_finest():
    model = small_model(**{'decoder.start_levels': [1, 1]})
    size, inputs = (104, 88), {}
    hook = model.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: inputs.update(kwargs), with_kwargs=True
    )
    forward(model, maps_of(size), samples_of([size] * 2, size))
    hook.remove()
    decoder = model.decoder
    coarse = copy.deepcopy(decoder)
    coarse.strides, coarse.start_levels = decoder.strides[1:], (0, 0)
    memory, pos, mask, ((height, width), *rest) = inputs['memory']
    others = Memory(memory[:, height * width :], pos[:, height * width :], mask, rest)
    assert mask is None
    with torch.no_grad():
        expected = coarse(**{**inputs, 'memory': others})
        memory[:, : height * width] = torch.nan
        results = decoder(**inputs)
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=0, atol=0)


@pytest.mark.parametrize('box', [[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]])
def test_degenerate_boxes_survive(box):
    prior = BoxPrior(16, HEADS, STRIDES).double()
    boxes = torch.tensor(box, dtype=torch.float64).expand(BATCH, QUERIES, 4)
    features = torch.randn(BATCH, QUERIES, 16, dtype=torch.float64, requires_grad=True)
    placed = prior(features, boxes, torch.tensor(SIZES, dtype=torch.float64))
    shapes = [(8, 10), (4, 5), (2, 3)]
    grid = common_grid(shapes, STRIDES, torch.tensor(SIZES, dtype=torch.float64), None)
    query, key = (torch.randn(BATCH, HEADS, n, 6, dtype=torch.float64) for n in (QUERIES, 106))
    out = folded_attention(query, key, key, placed, grid)
    out.sum().backward()
    assert out.isfinite().all() and features.grad.isfinite().all()


def test_proposals_are_dinos(model):
    """But for cells that cannot propose, those of MMDetection's DINO on the same cells."""
    size, content = (128, 160), [(128, 160), (100, 130)]
    model.eval()
    with torch.no_grad():
        encoder_inputs, _ = model.pre_transformer(maps_of(size), samples_of(content, size))
        memory = model.forward_encoder(**encoder_inputs)['memory']
        logits, boxes = model.propose(memory)
        cells, anchors = DINO.gen_encoder_output_proposals(
            model, memory.tokens, memory.padding, memory.shapes
        )
        can = anchors.isfinite().all(-1)
        all_logits = model.bbox_head.cls_branches[model.decoder.num_layers](cells)
        all_boxes = model.bbox_head.reg_branches[model.decoder.num_layers](cells) + anchors
    assert 0 < can.sum() < can.numel()
    best = all_logits.amax(-1).masked_fill(~can, -torch.inf).topk(model.num_queries).indices
    for actual, of_all in ((logits, all_logits), (boxes, all_boxes)):
        expected = of_all.gather(1, best.unsqueeze(-1).expand(-1, -1, of_all.size(-1)))
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)


def test_fewer_cells_than_queries(model):
    """Every cell is proposed, and one of them again for every query that is missing."""
    size = (8, 8)
    logits, _ = forward(model, maps_of(size), samples_of([size] * 2, size))
    assert logits.shape[:3] == (2, 2, 12)
    assert logits.isfinite().all()
    tokens = torch.randn(2, 4, model.embed_dims)
    logits, _ = model.propose(Memory(tokens, torch.zeros_like(tokens), None, [(1, 1)] * 4))
    assert logits.shape[1] == 12
    assert len(logits[0].unique(dim=0)) == 4


def test_starts_from_mmdetections_dino():
    """By names and shapes alone; docs/checkpoints.md has the number."""

    def shapes(cfg):
        cfg.model.update(_scope_='mmdet')
        cfg.model.backbone.init_cfg = None
        return {name: x.shape for name, x in MODELS.build(cfg.model).state_dict().items()}

    ours = shapes(Config.fromfile(CONFIGS / 'smca_dino/smca-dino_r50_8xb2-12e_coco.py'))
    theirs = shapes(get_config('mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'))
    fit = {name for name, shape in ours.items() if theirs.get(name) == shape}
    # MMDetection 3.3 encodes the positions of queries with half as many channels.
    fit.discard('decoder.ref_point_head.layers.0.weight')
    assert (len(fit), len(ours)) == (511, 669)
    fresh = re.compile(
        r'encoder\.|decoder\.(ref_point_head\.layers\.0\.weight'
        r'|layers\.\d\.(spatial_prior|cross_attn\.(query|key)_proj)\.)'
    )
    assert [name for name in ours.keys() - fit if not fresh.match(name)] == []


def test_mmdetections_dino_takes_the_head():
    """Losses and detections are those of its own head, whose weights it loads."""
    cfg = Config.fromfile(CONFIGS / 'small/dino_r18w16_1xb4-3ki_shapes192.py').model
    torch.manual_seed(0)
    theirs = MODELS.build(copy.deepcopy(cfg))
    theirs.init_weights()
    cfg.bbox_head.type = 'SMCADINOHead'
    ours = MODELS.build(cfg)
    ours.load_state_dict(theirs.state_dict())
    found = []
    for model in (theirs, ours):
        torch.manual_seed(0)  # of the noise that denoising removes
        data = demo_mm_inputs(2, [(3, 64, 96), (3, 48, 64)], num_items=[3, 0], num_classes=6)
        data = model.data_preprocessor(data, training=True)
        losses = model.train().loss(data['inputs'], data['data_samples'])
        with torch.no_grad():
            detections = model.eval().predict(data['inputs'], data['data_samples'])
        found.append((losses, [x.pred_instances for x in detections]))
    (expected, boxes), (losses, ours_boxes) = found
    assert list(losses) == list(expected)
    for name, loss in losses.items():
        reference = expected[name].reshape(())  # MMDetection has some as a vector.
        torch.testing.assert_close(loss, reference, rtol=1e-5, atol=0, msg=name)
    for a, b in zip(boxes, ours_boxes, strict=True):
        torch.testing.assert_close(b.bboxes, a.bboxes, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(b.scores, a.scores, rtol=1e-5, atol=1e-5)


def test_refined_centres_follow_the_boxes():
    """Multi-scale SMCA with one change; without it, centres stay."""
    cfg = Config.fromfile(CONFIGS / 'smca/smca-multi-scale_r50_refined_8xb1-50e_coco.py').model
    cfg.backbone.update(depth=18, init_cfg=None)
    cfg.neck.in_channels = [256, 512]
    cfg.encoder.update(num_layers=1, layer_kinds=['multi'])
    cfg.decoder.num_layers = 2
    torch.manual_seed(0)
    refined = MODELS.build(copy.deepcopy(cfg)).eval()
    del cfg.decoder['refine']
    plain = MODELS.build(cfg).eval()
    plain.load_state_dict(refined.state_dict())
    images, samples = torch.randn(1, 3, 64, 96), samples_of([(64, 96)], (64, 96))
    with torch.no_grad():
        outputs = [m.forward_transformer(m.extract_feat(images), samples) for m in (refined, plain)]
        scores, boxes = refined.bbox_head(**outputs[0])
        _, plain_boxes = plain.bbox_head(**outputs[1])
    references = outputs[0]['references']
    torch.testing.assert_close(references[0], outputs[1]['references'][0])
    torch.testing.assert_close(references[1].sigmoid(), boxes[0, ..., :2])
    torch.testing.assert_close(boxes[0], plain_boxes[0])
    assert not torch.allclose(boxes[1], plain_boxes[1])
