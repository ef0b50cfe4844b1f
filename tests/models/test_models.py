"""The detector built from every config: sizes, losses, detections, invariances, wrong values."""

import math

import pytest
import torch
from mmdet.registry import MODELS
from utils import FEW_QUERIES, ROOT, batch, build_detector, load_config, sample

# Parts of a model with 256 channels, by hand.
ATTENTION = 4 * (256 + 1) * 256
FFN_1024 = 256 * 1024 + 1024 + 1024 * 256 + 256
FFN_2048 = 256 * 2048 + 2048 + 2048 * 256 + 256
NORMS = 2 * 2 * 256
# Six decoder layers: offsets and scales of eight heads on another level, and its weight.
ANOTHER_LEVEL = 6 * (2 * 8 * 2 + 1) * 257
SCALE_SELECTION_OF_ONE = 6 * 257
# 17 more bottlenecks in the third stage.
R101 = 17 * (2 * 1024 * 256 + 9 * 256 * 256)
C3, C4, STRIDE_64 = (512 + 1) * 256, (1024 + 1) * 256, (9 * 2048 + 1) * 256
# What all multi-scale models have in common with the single-scale one, without its encoder.
DECODER = 41_534_998 - 6 * (ATTENTION + FFN_2048 + NORMS) + 6 * (FFN_1024 - FFN_2048)
THREE_LEVELS = DECODER + C4 + STRIDE_64 + 3 * 256 + 2 * ANOTHER_LEVEL + SCALE_SELECTION_OF_ONE
FOUR_LEVELS = THREE_LEVELS + C3 + 256 + ANOTHER_LEVEL
LAYER = ATTENTION + FFN_1024 + NORMS
MULTI_SCALE = THREE_LEVELS + 5 * LAYER
# Two 1 x 1 convolutions and, for 4 levels and 3 neighbours up and down, depthwise 5 x 5 ones.
CONV_LAYER = 2 * 257 * 256 + (4 + 3 + 3) * (25 + 1) * 256 + FFN_1024 + NORMS
CONV = FOUR_LEVELS + 5 * CONV_LAYER + (9 * 256 + 1) * 256
# 8 heads, 4 levels, 4 points: two coordinates and a weight each; values and output.
DEFORMABLE_LAYER = 257 * 8 * 4 * 4 * 3 + 2 * 257 * 256 + FFN_1024 + NORMS

# Trainable parameters with 80 classes.
CONFIGS = {
    'smca/smca_r50_8xb2-50e_coco.py': 41_534_998,
    'smca/smca_r50_8xb2-108e_coco.py': 41_534_998,
    'smca/smca_r50-dc5_8xb1-50e_coco.py': 41_534_998,
    'smca/smca_r101_8xb2-50e_coco.py': 41_534_998 + R101,
    # Six layers with two linear maps of 16 outputs: offsets and scales.
    'smca/ablation/smca_r50_head-shared_8xb2-50e_coco.py': 41_534_998 - 6 * (16 + 14) * 257,
    'smca/ablation/smca_r50_fixed-scale_8xb2-50e_coco.py': 41_534_998 - 6 * 16 * 257,
    'smca/ablation/smca_r50_isotropic-scale_8xb2-50e_coco.py': 41_534_998 - 6 * 8 * 257,
    'smca/ablation/smca_r50_covariance-scale_8xb2-50e_coco.py': 41_534_998 + 6 * 8 * 257,
    # DETR: no norm and linear maps in the six layers, no centres from an MLP of three layers.
    'smca/ablation/detr_r50_focal-loss_8xb2-50e_coco.py': 41_534_998
    - 6 * (2 * 256 + 2 * 16 * 257)
    - 257 * (2 * 256 + 2),
    'smca/smca-multi-scale_r50_8xb1-50e_coco.py': MULTI_SCALE,
    'smca/smca-multi-scale_r50_refined_8xb1-50e_coco.py': MULTI_SCALE,
    'smca/smca-multi-scale_r50_8xb1-108e_coco.py': MULTI_SCALE,
    'smca/smca-multi-scale_r101_8xb1-50e_coco.py': MULTI_SCALE + R101,
    'smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py': CONV,
    'smca/smca-multi-scale-conv_r101_8xb1-50e_coco.py': CONV + R101,
    'smca/smca-deformable-encoder_r50_8xb1-50e_coco.py': FOUR_LEVELS + 6 * DEFORMABLE_LAYER,
    'smca/ablation/smca-multi-scale_r50_no-scale-selection_8xb1-50e_coco.py': MULTI_SCALE
    - 3 * SCALE_SELECTION_OF_ONE,
    'smca/ablation/smca-multi-scale_r50_3intra_8xb1-50e_coco.py': MULTI_SCALE - 2 * LAYER,
    'smca/ablation/smca-multi-scale_r50_3multi_8xb1-50e_coco.py': MULTI_SCALE - 2 * LAYER,
    'smca/ablation/smca-multi-scale_r50_5intra_8xb1-50e_coco.py': MULTI_SCALE,
    # Four intra-scale layers with two sets more.
    'smca/ablation/smca-multi-scale_r50_unshared-attention_8xb1-50e_coco.py': MULTI_SCALE
    + 4 * 2 * ATTENTION,
    'smca/ablation/smca-multi-scale_r50_unshared-ffn_8xb1-50e_coco.py': MULTI_SCALE
    + 4 * 2 * FFN_1024,
}
SMALL = dict(FEW_QUERIES, encoder=dict(num_layers=1))


def assert_finite(losses):
    for name, loss in losses.items():
        assert torch.isfinite(loss).all(), name


def test_parameters_of_every_config():
    found = {}
    for path in (ROOT / 'configs/smca').rglob('*.py'):
        name = path.relative_to(ROOT / 'configs').as_posix()
        with torch.device('meta'):
            model = build_detector(name)
        found[name] = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found == CONFIGS


@pytest.fixture(scope='module')
def model():
    detector = build_detector('smca/smca_r50_8xb2-50e_coco.py', SMALL)
    detector.init_weights()
    return detector.eval()


@pytest.mark.parametrize(
    'sizes',
    [[(64, 64)], [(64, 96), (64, 96)], [(33, 200), (130, 40)]],
    ids=['single', 'no padding', 'unlike'],
)
@pytest.mark.parametrize('num_boxes', [0, 3])
def test_empty_images_and_padding(model, sizes, num_boxes):
    images, samples = batch(*sizes, num_boxes=num_boxes)
    losses = model.loss(images, samples)
    assert_finite(losses)
    if num_boxes == 0:
        assert losses['loss_bbox'] == 0 and losses['loss_iou'] == 0 and losses['loss_cls'] > 0


def test_more_boxes_than_queries(model):
    images, samples = batch((64, 64), num_boxes=20)
    assert_finite(model.loss(images, samples))


def test_padding_does_not_matter():
    """An image in a padded batch gives what it gives alone, from the neck's maps on."""
    model = build_detector('smca/smca_r50_8xb2-50e_coco.py', SMALL).double().eval()
    sizes = [(96, 128), (64, 160)]  # multiples of the stride: maps can be cropped
    torch.manual_seed(0)
    maps = torch.randn(2, 256, 3, 5, dtype=torch.float64)
    _, samples = batch(*sizes)
    with torch.no_grad():
        together = model.forward_transformer((maps,), samples)
        scores, boxes = model.bbox_head(**together)
        for i, (height, width) in enumerate(sizes):
            crop = maps[i : i + 1, :, : height // 32, : width // 32]
            alone = model.forward_transformer((crop,), [sample((height, width), (height, width))])
            scores_alone, boxes_alone = model.bbox_head(**alone)
            torch.testing.assert_close(scores[:, i : i + 1], scores_alone, rtol=0, atol=1e-5)
            torch.testing.assert_close(boxes[:, i : i + 1], boxes_alone, rtol=0, atol=1e-6)


def test_centers_follow_the_stride():
    """C5 and DC5 look at the same place of the image: half as many pixels, twice as many cells."""
    priors = {}
    for stride in (16, 32):
        torch.manual_seed(0)
        prior = MODELS.build(
            dict(
                type='SpatialPrior', embed_dims=16, num_heads=2, strides=[stride], head_shared=True
            )
        )
        features = prior.features(torch.zeros(1, 4, 16), torch.randn(1, 4, 16))
        (priors[stride],) = prior(
            features, torch.full((1, 4, 2), 0.25), torch.tensor([[640.0, 320.0]])
        )
    torch.testing.assert_close(priors[32].centers[0, 0, 0], torch.tensor([5.0, 2.5]))
    torch.testing.assert_close(priors[16].centers, 2 * priors[32].centers)


def test_initial_scales_are_one(model):
    for layer in model.decoder.layers:
        prior = layer.spatial_prior
        features = torch.randn(1, 5, 256)
        (level,) = prior(features, torch.rand(1, 5, 2), torch.tensor([[100.0, 100.0]]))
        assert torch.equal(level.precisions, torch.full((1, 8, 5, 2), 1 / prior.betas[0]))


def test_classes_start_at_their_prior(model):
    torch.testing.assert_close(model.bbox_head.fc_cls.bias.sigmoid(), torch.full((80,), 0.01))


def test_position_encoding_is_the_references():
    """MMDetection's sine encoding agrees with DETR's, written down here, to the bit."""
    cfg = load_config('smca/smca_r50_8xb2-50e_coco.py')
    encoding = MODELS.build(dict(type='SinePositionalEncoding', **cfg.model.positional_encoding))
    mask = torch.ones(2, 7, 9, dtype=torch.bool)
    mask[0, :, :] = False
    mask[1, :5, :6] = False
    y, x = [(~mask).cumsum(dim, dtype=torch.float32) for dim in (1, 2)]
    y = y / (y[:, -1:, :] + 1e-6) * 2 * math.pi
    x = x / (x[:, :, -1:] + 1e-6) * 2 * math.pi
    exponent = torch.div(torch.arange(128, dtype=torch.float32), 2, rounding_mode='floor')
    frequency = 10000 ** (2 * exponent / 128)
    channels = []
    for axis in (y, x):
        phase = axis[..., None] / frequency
        channels.append(torch.stack((phase[..., 0::2].sin(), phase[..., 1::2].cos()), 4).flatten(3))
    assert torch.equal(encoding(mask), torch.cat(channels, 3).permute(0, 3, 1, 2))


PRIOR = 'decoder.layer_cfg.spatial_prior_cfg'
FOCAL = dict(type='FocalLoss', use_sigmoid=True)
WRONG = {
    'heads do not divide': (
        {'decoder.layer_cfg.cross_attn_cfg.num_heads': 7},
        ['num_heads=7', 'embed_dims=256'],
    ),
    'encoder heads': ({'encoder.layer_cfg.self_attn_cfg.num_heads': 0}, ['num_heads=0']),
    'scale': (
        {f'{PRIOR}.scale': 'gaussian'},
        ['spatial_prior_cfg.scale', 'gaussian', 'fixed', 'isotropic', 'independent', 'covariance'],
    ),
    'beta zero': ({f'{PRIOR}.beta': 0.0}, ['spatial_prior_cfg.beta=0.0', 'positive']),
    'beta negative': ({f'{PRIOR}.beta': -8}, ['spatial_prior_cfg.beta=-8', 'positive']),
    'betas': ({f'{PRIOR}.beta': [8, 8]}, ['spatial_prior_cfg.beta', '1 levels']),
    'stride': ({'decoder.strides': [16]}, ['decoder.strides=[16]', '[32]']),
    'levels': ({'decoder.strides': [16, 32]}, ['decoder.strides=[16, 32]', '[32]']),
    'no level': ({'decoder.strides': []}, ['decoder.strides=[]', 'positive stride']),
    'one stride': ({'decoder.strides': 32}, ['decoder.strides=32', 'per level', '[32]']),
    'stride in quotes': ({'decoder.strides': '32'}, ["decoder.strides='32'", '[32]']),
    'no decoder layer': ({'decoder.num_layers': 0}, ['decoder.num_layers=0', 'at least 1']),
    'no encoder layer': ({'encoder.num_layers': 0}, ['encoder.num_layers=0', 'at least 1']),
    'half a layer': ({'encoder.num_layers': 1.5}, ['encoder.num_layers=1.5', 'integer']),
    'no query': ({'num_queries': 0}, ['model.num_queries=0', 'at least 1']),
    'beta in quotes': ({f'{PRIOR}.beta': '8'}, ["spatial_prior_cfg.beta='8'", 'positive']),
    'heads of the prior': (
        {f'{PRIOR}.num_heads': 4},
        ['spatial_prior_cfg.num_heads=4', 'cross_attn_cfg', 'leave it out'],
    ),
    'dilated backbone': (
        {'backbone.strides': (1, 2, 2, 1), 'backbone.dilations': (1, 1, 1, 2)},
        ['decoder.strides=[32]', '[16]'],
    ),
    'implementation': (
        {'decoder.layer_cfg.cross_attn_cfg.implementation': 'flash'},
        ['cross_attn_cfg.implementation', 'flash', 'explicit', 'folded'],
    ),
    'position encoding': (
        {'positional_encoding.num_feats': 64},
        ['positional_encoding.num_feats=64', 'embed_dims=256'],
    ),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_config_value_is_named(case):
    changes, words = WRONG[case]
    cfg = load_config('smca/smca_r50_8xb2-50e_coco.py')
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    with pytest.raises(ValueError) as info:
        MODELS.build(cfg.model)
    for word in words:
        assert word in str(info.value)


def test_backbone_that_rounds_down_is_told_from_other_strides():
    model = build_detector('smca/smca_r50_8xb2-50e_coco.py', SMALL)
    images, samples = batch((96, 130))
    with pytest.raises(ValueError, match=r'rounds sizes down: set .*\.pad_size_divisor=32'):
        model.forward_transformer((torch.randn(1, 256, 3, 4),), samples)


@pytest.mark.parametrize('max_per_img', [1000, 2])
def test_few_queries_give_what_they_have(max_per_img: int):
    """MMDetection asks topk for more than there is."""
    head = MODELS.build(dict(type='SMCAHead', num_classes=3, test_cfg={}, loss_cls=FOCAL))
    head.test_cfg = dict(max_per_img=max_per_img)
    scores, boxes = torch.randn(5, 3), torch.rand(5, 4)
    meta = dict(img_shape=(64, 64), scale_factor=(1.0, 1.0))
    found = head._predict_by_feat_single(scores, boxes, meta)
    assert len(found) == min(max_per_img, 15)
    expected = scores.sigmoid().flatten().sort(descending=True).values[: len(found)]
    torch.testing.assert_close(found.scores, expected)
    assert head.test_cfg == dict(max_per_img=max_per_img)


def test_strides_are_measured_whatever_the_backbone_is():
    """RegNet, a ResNet to Python, has no stem of stride 4."""
    cfg = load_config('small/smca-multi-scale_r18w16_1xb4-3ki_shapes192.py').model
    cfg.backbone = dict(type='RegNet', arch='regnetx_400mf', out_indices=(1, 2, 3), init_cfg=None)
    cfg.neck.in_channels = [64, 160, 384]
    cfg.decoder.strides = [8, 16, 32]
    model = MODELS.build(cfg)
    assert list(model.neck_strides) == [8, 16, 32]
    # The measurement changed nothing that is trained.
    assert model.backbone.bn1.num_batches_tracked == 0
    assert model.backbone.training and model.neck.training
    cfg.decoder.strides = [16, 32, 64]
    with pytest.raises(ValueError, match=r'\[16, 32, 64\] does not fit .*\[8, 16, 32\]'):
        MODELS.build(cfg)


def test_stride_of_another_backbone_is_checked_when_it_runs():
    model = build_detector('smca/smca_r50_8xb2-50e_coco.py', SMALL)
    images, samples = batch((96, 130))
    with pytest.raises(ValueError, match=r'decoder.strides=\[32\] does not fit'):
        model.forward_transformer((torch.randn(1, 256, 6, 9),), samples)
