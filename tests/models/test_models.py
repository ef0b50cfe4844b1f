"""The detector built from every config: sizes, losses, detections, invariances, wrong values."""

import math

import pytest
import torch
from mmdet.registry import MODELS
from utils import FEW_QUERIES, ROOT, batch, build_detector, load_config

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
    # Norms in the neck instead of biases.
    'smca/smca-deformable-encoder_r50_from-deformable-detr_8xb1-5e_coco.py': FOUR_LEVELS
    + 6 * DEFORMABLE_LAYER
    + 4 * 256,
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


CROSS_ATTENTION, PRIOR = 'decoder.layer_cfg.cross_attn_cfg', 'decoder.layer_cfg.spatial_prior_cfg'
SINGLE = 'smca/smca_r50_8xb2-50e_coco.py'
MULTI = 'smca/smca-multi-scale_r50_8xb1-50e_coco.py'
CONV_ENCODER = 'smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py'
DINO = 'smca_dino/smca-dino_r50_8xb2-12e_coco.py'
SCALES = "'fixed', 'isotropic', 'independent', 'covariance'"
WRONG = [
    (SINGLE, {f'{CROSS_ATTENTION}.num_heads': 7}, ['num_heads=7', 'embed_dims=256']),
    (SINGLE, {'encoder.layer_cfg.self_attn_cfg.num_heads': 0}, ['num_heads=0']),
    (SINGLE, {f'{PRIOR}.scale': 'gaussian'}, ["spatial_prior_cfg.scale='gaussian'", SCALES]),
    (SINGLE, {f'{PRIOR}.beta': 0.0}, ['spatial_prior_cfg.beta=0.0', 'positive']),
    (SINGLE, {f'{PRIOR}.beta': -8}, ['spatial_prior_cfg.beta=-8', 'positive']),
    (SINGLE, {f'{PRIOR}.beta': '8'}, ["spatial_prior_cfg.beta='8'", 'positive']),
    (SINGLE, {f'{PRIOR}.beta': [8, 8]}, ['spatial_prior_cfg.beta', '1 levels']),
    (MULTI, {f'{PRIOR}.beta': [16.0, 8.0]}, ['beta=[16.0, 8.0]', '3 levels of model.strides']),
    (SINGLE, {f'{PRIOR}.num_heads': 4}, ['spatial_prior_cfg.num_heads=4', 'leave it out']),
    (SINGLE, {PRIOR: None}, ['spatial_prior_cfg=None']),
    (SINGLE, {'strides': []}, ['model.strides=[]', 'positive stride']),
    (SINGLE, {'strides': 32}, ['model.strides=32', 'per level', '[32]']),
    (SINGLE, {'strides': '32'}, ["model.strides='32'", '[32]']),
    (SINGLE, {'decoder.strides': [32]}, ['decoder.strides: leave it out', 'model.strides=[32]']),
    (MULTI, {'encoder.num_levels': 4}, ['encoder.num_levels: leave it out']),
    (CONV_ENCODER, {'strides': [16], f'{PRIOR}.beta': 8.0}, ['model.strides', 'at least 2', '1']),
    (CONV_ENCODER, {'strides': [8, 16, 16, 32]}, ['SMCAConvEncoder', 'twice', '[8, 16, 16, 32]']),
    (SINGLE, {'decoder.num_layers': 0}, ['decoder.num_layers=0', 'at least 1']),
    (SINGLE, {'encoder.num_layers': 0}, ['encoder.num_layers=0', 'at least 1']),
    (SINGLE, {'encoder.num_layers': 1.5}, ['encoder.num_layers=1.5', 'integer']),
    (SINGLE, {'num_queries': 0}, ['model.num_queries=0', 'at least 1']),
    (SINGLE, {f'{CROSS_ATTENTION}.implementation': 'flash'}, ["'flash'", "'explicit', 'folded'"]),
    (MULTI, {f'{CROSS_ATTENTION}.scale_selection': 'softmax'}, ["='softmax'", "'uniform'"]),
    (SINGLE, {'positional_encoding.num_feats': 64}, ['num_feats=64', 'embed_dims=256']),
    (MULTI, {'encoder.layer_kinds': ['intra'] * 4 + ['all']}, ["'all'", "'intra', 'multi'"]),
    (MULTI, {'encoder.num_layers': 6}, ['encoder.layer_kinds', 'encoder.num_layers=6']),
    (MULTI, {'encoder.layer_kinds': []}, ['encoder.layer_kinds=[]', 'encoder.num_layers=5']),
    (DINO, {f'{CROSS_ATTENTION}.num_heads': 5}, ['num_heads=5']),
    (DINO, {f'{CROSS_ATTENTION}.num_heads': 32}, ['num_heads=32', '8 channels', 'takes 9']),
    (DINO, {f'{PRIOR}.width': 0}, ['spatial_prior_cfg.width=0']),
    (DINO, {f'{PRIOR}.floor': 0}, ['spatial_prior_cfg.floor=0']),
    (DINO, {'decoder.start_levels': [0]}, ['decoder.start_levels=[0]']),
    (DINO, {'decoder.start_levels': [0] * 5 + [4]}, ['decoder.start_levels=[0, 0, 0, 0, 0, 4]']),
]


@pytest.mark.parametrize('case', WRONG, ids=lambda case: str(case[1]))
def test_wrong_config_value_is_named(case):
    name, changes, words = case
    cfg = load_config(name)
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    with pytest.raises(ValueError) as info, torch.device('meta'):
        MODELS.build(cfg.model)
    for word in words:
        assert word in str(info.value)


@pytest.mark.parametrize(
    ('strides', 'sides', 'words'),
    [
        ([32], [(3, 4)], ['rounds sizes down', 'pad_size_divisor=32']),
        ([32], [(6, 9)], ['model.strides=[32]', 'Set it to [16]']),
        ([16, 32], [(6, 9)], ['model.strides=[16, 32]', 'Set it to [16]']),
        ([16, 32], [(12, 17), (6, 9)], ['model.strides=[16, 32]', 'Set it to [8, 16]']),
        ([16], [(5, 3)], ['model.strides=[16]', 'maps of [(5, 3)], not [(6, 9)]']),
    ],
)
def test_the_first_batch_names_wrong_strides(strides, sides, words):
    """Of an image of 96 x 130 pixels, for maps as the neck gives them."""
    with torch.device('meta'):
        model = build_detector(SINGLE, dict(SMALL, strides=strides))
    _, samples = batch((96, 130))
    with pytest.raises(ValueError) as info:
        model.pre_transformer(tuple(torch.randn(1, 256, *side) for side in sides), samples)
    for word in words:
        assert word in str(info.value)


@pytest.mark.parametrize('max_per_img', [1000, 2])
def test_few_queries_give_what_they_have(max_per_img: int):
    """MMDetection asks topk for more than there is."""
    focal = dict(type='FocalLoss', use_sigmoid=True)
    head = MODELS.build(dict(type='SMCAHead', num_classes=3, test_cfg={}, loss_cls=focal))
    head.test_cfg = dict(max_per_img=max_per_img)
    scores, boxes = torch.randn(5, 3), torch.rand(5, 4)
    meta = dict(img_shape=(64, 64), scale_factor=(1.0, 1.0))
    found = head._predict_by_feat_single(scores, boxes, meta)
    assert len(found) == min(max_per_img, 15)
    expected = scores.sigmoid().flatten().sort(descending=True).values[: len(found)]
    torch.testing.assert_close(found.scores, expected)
    assert head.test_cfg == dict(max_per_img=max_per_img)
