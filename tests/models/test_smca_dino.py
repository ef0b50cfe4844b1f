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
from torch import nn
from utils import ROOT

from mmsmca.models.layers.box_prior import BoxPrior, JointPrior
from mmsmca.models.layers.joint_attention import (
    explicit_joint_attention,
    folded_joint_attention,
    joint_log_prior,
    joint_prior_channels,
    num_prior_channels,
    place_cells,
)
from mmsmca.models.layers.memory import Memory
from mmsmca.models.layers.plain_co_attention import PlainCoAttention

CONFIGS = ROOT / 'configs'
STRIDES = (8, 16, 32)
SHAPES = [(8, 10), (4, 5), (2, 3)]
SIZES = [(80, 64), (53, 41)]
BATCH, HEADS, QUERIES, DIMS = 2, 4, 5, 6


def padding_of(sizes, shapes=SHAPES, strides=STRIDES):
    masks = []
    for (height, width), stride in zip(shapes, strides, strict=True):
        mask = torch.ones(len(sizes), height, width, dtype=torch.bool)
        for image, (w, h) in enumerate(sizes):
            mask[image, : math.ceil(h / stride), : math.ceil(w / stride)] = False
        masks.append(mask.flatten(1))
    return torch.cat(masks, dim=1)


def cells_of(sizes=SIZES, dtype=torch.float64, padded=True):
    padding = padding_of(sizes) if padded else None
    return place_cells(SHAPES, STRIDES, torch.tensor(sizes, dtype=dtype), padding)


def random_prior(dtype=torch.float64, precision=2.0):
    torch.manual_seed(0)
    shape = (BATCH, HEADS, QUERIES)
    centers = torch.rand(*shape, 2, dtype=dtype) * 12 - 1
    precisions = torch.rand(*shape, 2, dtype=dtype) * precision
    return JointPrior(centers, precisions, torch.randn(*shape, len(STRIDES), dtype=dtype))


def random_qkv(dtype=torch.float64, dims=DIMS):
    torch.manual_seed(1)
    num_cells = sum(height * width for height, width in SHAPES)
    return [
        torch.randn(BATCH, HEADS, length, dims, dtype=dtype)
        for length in (QUERIES, num_cells, num_cells)
    ]


def test_log_prior_is_the_equation():
    """Cell centres lie at a half, in cells of the finest level."""
    prior, cells = random_prior(), cells_of()
    log_prior = joint_log_prior(prior, cells)
    index = 0
    for level, ((height, width), stride) in enumerate(zip(SHAPES, STRIDES, strict=True)):
        for row in range(height):
            for column in range(width):
                x, y = (column + 0.5) * stride / 8, (row + 0.5) * stride / 8
                offset = torch.tensor([x, y], dtype=torch.float64) - prior.centers
                expected = prior.gates[..., level] - (prior.precisions * offset**2).sum(-1)
                torch.testing.assert_close(log_prior[..., index], expected)
                index += 1


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


@pytest.mark.parametrize('padded', [False, True])
def test_folded_is_explicit(padded):
    prior, cells, qkv = random_prior(), cells_of(padded=padded), random_qkv()
    expected = explicit_joint_attention(*qkv, prior, cells)
    torch.testing.assert_close(
        folded_joint_attention(*qkv, prior, cells), expected, rtol=1e-10, atol=1e-12
    )


@pytest.mark.parametrize('attention', [explicit_joint_attention, folded_joint_attention])
def test_gradients(attention):
    cells = cells_of()
    query, key, value = (x[:, :2, :, :3].contiguous() for x in random_qkv())
    prior = JointPrior(*(x[:, :2].contiguous() for x in random_prior()))
    leaves = [x.requires_grad_() for x in (query, key, value, *prior)]

    def attend(q, k, v, *prior):
        return attention(q, k, v, JointPrior(*prior), cells)

    assert torch.autograd.gradcheck(attend, leaves, atol=1e-6)


def test_channels_fit_beside_the_content():
    """Two channels per axis, one for both, one for every level but the first; one for padding."""
    query, key = joint_prior_channels(random_prior(), cells_of())
    widths = [sum(x.size(-1) for x in channels) for channels in (query, key)]
    assert widths == [4 + len(STRIDES)] * 2
    assert num_prior_channels(len(STRIDES)) == 5 + len(STRIDES)


def test_mirrored_map_gives_mirrored_attention():
    """Cells lie at a half: nothing but the map's content tells left from right."""
    sizes = [(80, 64), (80, 64)]
    shapes = [(8, 10), (4, 5)]
    cells = place_cells(shapes, (8, 16), torch.tensor(sizes, dtype=torch.float64), None)
    prior = random_prior()._replace(gates=random_prior().gates[..., :2])
    torch.manual_seed(1)
    query = torch.randn(BATCH, HEADS, QUERIES, DIMS, dtype=torch.float64)
    maps = [torch.randn(2, BATCH, HEADS, *shape, DIMS, dtype=torch.float64) for shape in shapes]
    key, value = torch.cat([x.flatten(3, 4) for x in maps], dim=3)
    flipped_key, flipped_value = torch.cat([x.flip(4).flatten(3, 4) for x in maps], dim=3)
    mirrored = prior._replace(
        centers=torch.stack((10 - prior.centers[..., 0], prior.centers[..., 1]), -1)
    )
    torch.testing.assert_close(
        folded_joint_attention(query, flipped_key, flipped_value, mirrored, cells),
        folded_joint_attention(query, key, value, prior, cells),
    )


def test_plain_co_attention_is_pytorchs():
    """With all channels of every head for the content, and as MultiheadAttention starts."""
    torch.manual_seed(0)
    plain = PlainCoAttention(64, HEADS).double()
    expected = nn.MultiheadAttention(64, HEADS, batch_first=True, dtype=torch.float64)
    assert plain.attn.in_proj_weight.abs().max() <= (6 / (4 * 64)) ** 0.5
    assert plain.attn.in_proj_weight.std() > 0.05
    expected.load_state_dict(plain.attn.state_dict())
    cells = cells_of()
    shapes = (QUERIES, QUERIES, len(cells.levels), len(cells.levels))
    query, query_pos, memory, memory_pos = (
        torch.randn(BATCH, length, 64, dtype=torch.float64) for length in shapes
    )
    key = memory + memory_pos
    out = plain(query, query_pos, key, memory, random_prior(), cells)
    attended, weights = expected(
        query + query_pos, key, memory, cells.padding, average_attn_weights=False
    )
    torch.testing.assert_close(out, query + attended)
    content, prior = plain.logits(query, query_pos, key, random_prior(), cells)
    assert (prior == 0).all()
    content = content.masked_fill(cells.padding[:, None, None], -torch.inf)
    torch.testing.assert_close(content.softmax(-1), weights)


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
        {'decoder.layer_cfg.spatial_prior_cfg': dict(_delete_=True, type='NoPrior')},
        {
            'decoder.layer_cfg.spatial_prior_cfg': dict(_delete_=True, type='NoPrior'),
            'decoder.layer_cfg.cross_attn_cfg.type': 'PlainCoAttention',
        },
        {'decoder.layer_cfg.spatial_prior_cfg': dict(_delete_=True, type='StaticPrior')},
        {'bbox_head.loss_cls': dict(_delete_=True, type='MatchabilityLoss')},
        {'decoder.start_levels': [1, 0]},
    ],
    ids=[
        'smca-dino',
        'no-denoising',
        'one-stage',
        'no-prior',
        'plain-attention',
        'static-prior',
        'matchability',
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


def test_padded_equals_alone(model):
    """From the neck's maps on, through query selection, encoder and decoder."""
    alone_size, padded_size = (104, 88), (200, 184)
    alone, padded = maps_of(alone_size), maps_of(padded_size)
    for small, large in zip(alone, padded, strict=True):
        large[..., : small.size(2), : small.size(3)] = small
    expected = forward(model, alone, samples_of([alone_size] * 2, alone_size))
    results = forward(model, padded, samples_of([alone_size] * 2, padded_size))
    for result, other in zip(results, expected, strict=True):
        torch.testing.assert_close(result, other, rtol=0, atol=1e-5)


def test_padded_equals_alone_from_coarser_levels_on():
    """As is, and with the finest level left out by hand: a decoder that never had it."""
    model = small_model(**{'decoder.start_levels': [1, 1]})
    test_padded_equals_alone(model)
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


def test_images_of_a_batch_do_not_see_each_other(model):
    maps, size = maps_of((96, 128)), (96, 128)
    together = forward(model, maps, samples_of([size, (90, 100)], size))
    swapped = forward(model, [x.flip(0) for x in maps], samples_of([(90, 100), size], size))
    for result, other in zip(together, swapped, strict=True):
        torch.testing.assert_close(result, other.flip(1), rtol=0, atol=1e-5)


def test_order_of_the_queries_does_not_matter(model):
    maps, size = maps_of((96, 128)), (96, 128)
    model.eval()
    with torch.no_grad():
        encoder_inputs, decoder_inputs = model.pre_transformer(maps, samples_of([size] * 2, size))
        chosen, _ = model.pre_decoder(**model.forward_encoder(**encoder_inputs))
        decoder_inputs.update(chosen)
        order = torch.randperm(model.num_queries)
        permuted = dict(
            decoder_inputs,
            query=decoder_inputs['query'][:, order],
            reference_points=decoder_inputs['reference_points'][:, order],
        )
        states = model.forward_decoder(**decoder_inputs)['hidden_states']
        others = model.forward_decoder(**permuted)['hidden_states']
    torch.testing.assert_close(others, states[:, :, order], rtol=0, atol=1e-5)


@pytest.mark.parametrize('box', [[0.5, 0.5, 0.0, 0.0], [0.0, 1.0, 1.0, 1.0]])
def test_degenerate_boxes_survive(box):
    prior = BoxPrior(16, HEADS, STRIDES).double()
    boxes = torch.tensor(box, dtype=torch.float64).expand(BATCH, QUERIES, 4)
    features = torch.randn(BATCH, QUERIES, 16, dtype=torch.float64, requires_grad=True)
    placed = prior(features, boxes, torch.tensor(SIZES, dtype=torch.float64))
    out = folded_joint_attention(*random_qkv(), placed, cells_of())
    out.sum().backward()
    assert out.isfinite().all() and features.grad.isfinite().all()


@pytest.mark.parametrize(
    ('changes', 'message'),
    [
        ({'decoder.strides': [8, 16, 32]}, 'decoder.strides'),
        ({'encoder.num_levels': 3}, 'encoder.num_levels=3'),
        ({'decoder.layer_cfg.cross_attn_cfg.num_heads': 5}, 'num_heads=5'),
        ({'decoder.layer_cfg.cross_attn_cfg.num_heads': 16}, 'num_heads=16'),
        ({'decoder.layer_cfg.cross_attn_cfg.implementation': 'fold'}, "implementation='fold'"),
        ({'decoder.layer_cfg.spatial_prior_cfg.width': 0}, 'spatial_prior_cfg.width=0'),
        ({'decoder.layer_cfg.spatial_prior_cfg.floor': 0}, 'spatial_prior_cfg.floor=0'),
        ({'decoder.start_levels': [0]}, 'decoder.start_levels=[0]'),
        ({'decoder.start_levels': [0, 4]}, 'decoder.start_levels=[0, 4]'),
        ({'decoder.return_intermediate': False}, 'decoder.return_intermediate'),
        ({'positional_encoding.num_feats': 16}, 'positional_encoding.num_feats=16'),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises(Exception, match=re.escape(message)):
        small_model(**changes)


def test_proposals_are_dinos(model):
    """But for cells that cannot propose, those of MMDetection's DINO on the same cells."""
    size, content = (128, 160), [(128, 160), (100, 130)]
    model.eval()
    with torch.no_grad():
        encoder_inputs, _ = model.pre_transformer(maps_of(size), samples_of(content, size))
        memory = model.forward_encoder(**encoder_inputs)['memory']
        arguments = memory.cells, memory.mask, memory.shapes
        cells, boxes = model.gen_encoder_output_proposals(*arguments)
        expected_cells, expected_boxes = DINO.gen_encoder_output_proposals(model, *arguments)
    can = expected_boxes.isfinite().all(-1)
    assert 0 < can.sum() < can.numel()
    torch.testing.assert_close(boxes[can], expected_boxes[can], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(cells[can], expected_cells[can])
    assert boxes.isfinite().all()


def test_fewer_cells_than_queries(model):
    """Every cell is proposed, and one of them again for every query that is missing."""
    size = (8, 8)
    logits, _ = forward(model, maps_of(size), samples_of([size] * 2, size))
    assert logits.shape[:3] == (2, 2, 12)
    assert logits.isfinite().all()
    memory = torch.randn(2, 4, model.embed_dims)
    _, boxes = model.gen_encoder_output_proposals(memory, None, [(1, 1)] * 4)
    assert boxes.shape[1] == 12
    assert len(boxes[0].unique(dim=0)) == 4


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
    torch.testing.assert_close(references[0], outputs[1]['references'])
    torch.testing.assert_close(references[1].sigmoid(), boxes[0, ..., :2])
    torch.testing.assert_close(boxes[0], plain_boxes[0])
    assert not torch.allclose(boxes[1], plain_boxes[1])


def test_matchability_loss_is_the_equation():
    torch.manual_seed(0)
    loss = MODELS.build(dict(type='MatchabilityLoss', gamma=1.5, loss_weight=2.0))
    logits, labels = torch.randn(3, 4), torch.tensor([1, 4, 0])
    quality = torch.tensor([0.7, 0.0, 0.2])
    p = logits.sigmoid()
    expected = 0.0
    for i, label in enumerate(labels):
        for k in range(4):
            if k == label:
                q = quality[i] ** 1.5
                expected -= q * p[i, k].log() + (1 - q) * (1 - p[i, k]).log()
            else:
                expected -= p[i, k] ** 1.5 * (1 - p[i, k]).log()
    torch.testing.assert_close(loss(logits, (labels, quality), avg_factor=5.0), 2 * expected / 5)
