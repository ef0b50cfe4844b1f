"""Maps of the co-attention are what the layers compute."""

import copy
import functools

import pytest
import torch
from mmdet.structures import DetDataSample
from utils import build_detector

from mmsmca.models.layers.dino_decoder import SMCADINODecoderLayer
from mmsmca.visualization.figures import detections_image, outlines
from mmsmca.visualization.inspection import Inspection, VisualizationError, record

SINGLE = 'small/smca_r18w16_1xb8-11e_shapes128.py'
MULTI = 'small/smca-multi-scale_r18w16_1xb4-3ki_shapes192.py'
DINO = 'small/smca-dino_r18w16_1xb4-3ki_shapes192.py'
MODELS = {
    'single scale': (SINGLE, {}),
    'head-shared': (SINGLE, dict(spatial_prior_cfg=dict(head_shared=True))),
    'covariance': (SINGLE, dict(spatial_prior_cfg=dict(scale='covariance'))),
    'learned': (MULTI, {}),
    'uniform': (MULTI, dict(cross_attn_cfg=dict(scale_selection='uniform'))),
    'box': (DINO, {}),
    'static': (DINO, dict(spatial_prior_cfg=dict(_delete_=True, type='StaticPrior'))),
}
BOX_TIED = ('box', 'static')
SIZE = (72, 104)  # height and width; padded to 96 x 128
QUERIES = [3, 0, 17]


def build(kind):
    """Detector in float64 with weights that no symmetry hides behind."""
    torch.manual_seed(0)
    name, layer_cfg = copy.deepcopy(MODELS[kind])  # merging takes _delete_ out of it
    model_options = dict(data_preprocessor=dict(pad_size_divisor=32))
    if layer_cfg:
        model_options['decoder'] = dict(layer_cfg=layer_cfg)
    model = build_detector(name, model_options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


@functools.cache
def look(kind):
    """A detector's inspection of a random image of half its size in the network."""
    model = build(kind)
    sample = DetDataSample(
        metainfo=dict(img_shape=SIZE, ori_shape=(36, 52), scale_factor=(2.0, 2.0), img_id=0)
    )
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)
    data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
    with torch.no_grad(), record(model) as calls:
        samples = model.predict(data['inputs'].double(), data['data_samples'])
    inspection = Inspection(model, calls, samples[0], image.permute(1, 2, 0).numpy())
    return model, inspection, samples[0].pred_instances


@pytest.fixture(scope='module', params=MODELS)
def modulated(request):
    return request.param, *look(request.param)[:2]


def weighted_values(maps, value):
    """Sum of the values, (M, N, d), by the weights of the maps: (M, Q, d)."""
    weights = [
        maps.level_weights[..., level, None] * weights.flatten(-2)
        for level, weights in enumerate(maps.weights)
    ]
    return torch.cat(weights, dim=-1) @ value


def value_and_output(layer):
    """Projections of a layer's co-attention: to values of the heads, and from their results."""
    if not isinstance(layer, SMCADINODecoderLayer):
        return layer.cross_attn.attn.value, layer.cross_attn.attn.output
    attention = layer.cross_attn
    return (
        lambda x: attention.value_proj(x).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2),
        lambda x: attention.output_proj(x.transpose(1, 2).flatten(2)),
    )


@torch.no_grad()
def test_maps_times_values_are_the_layers_output(modulated):
    _, model, inspection = modulated
    for number, layer in enumerate(model.decoder.layers):
        maps = inspection.maps(QUERIES, number)
        given, result = inspection.calls[layer.cross_attn]
        value, output = value_and_output(layer)
        out = weighted_values(maps, value(given['value'])[0])
        expected = (result - given['query'])[:, QUERIES]
        torch.testing.assert_close(output(out[None]), expected, rtol=1e-9, atol=1e-11)


def gates_of(model, inspection):
    """Factor of each level's Gaussians in the last layer, (M, Q, 1, 1) per level."""
    prior = inspection.calls[model.decoder.layers[-1].cross_attn].arguments['prior']
    if prior.gates is None:
        return [1.0] * len(model.strides)
    return prior.gates[0, :, QUERIES, :, None, None].exp().unbind(2)


def test_gaussian_times_attention_without_it_is_attention_with_it(modulated):
    kind, model, inspection = modulated
    maps = inspection.maps(QUERIES)
    gates = gates_of(model, inspection) if kind in BOX_TIED else [1.0] * len(maps.strides)
    products = [
        gaussian * gate * weights
        for gaussian, gate, weights in zip(maps.gaussians, gates, maps.unmodulated, strict=True)
    ]
    sums = torch.stack([product.sum(dim=(-2, -1)) for product in products])
    if kind in BOX_TIED:
        sums = sums.sum(0).expand_as(sums)
    for product, total, weights in zip(products, sums, maps.weights, strict=True):
        torch.testing.assert_close(product / total[..., None, None], weights)


def test_gaussians_have_their_peaks_and_scales_in_pixels(modulated):
    kind, _, inspection = modulated
    maps = inspection.maps(QUERIES)
    prior = maps.prior
    levels = len(maps.strides)
    for gaussian, stride, peaks, scales in zip(
        maps.gaussians,
        maps.strides,
        prior.peaks.expand(levels, -1, -1, -1),
        prior.scales.expand(levels, -1, -1, -1),
        strict=True,
    ):
        height, width = gaussian.shape[-2:]
        cells = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(1)
        distance = (cells + maps.cell_place) * stride - peaks[..., None, :]
        exponent = (scales[..., None, :2] * distance).square().sum(-1)
        if kind == 'covariance':
            exponent += (scales[..., 2:] * distance.prod(-1)).square()
        torch.testing.assert_close((-exponent).exp(), gaussian.flatten(-2))


@pytest.mark.parametrize('kind', ['single scale', 'covariance', 'box'])
def test_outlines_are_where_gaussians_are_one_half(kind):
    prior = look(kind)[1].maps([3]).prior
    distance = outlines(prior, 0) - prior.peaks[0]
    scales = prior.scales[0]
    exponent = (scales[..., :2] * distance).square().sum(-1)
    exponent += (scales[..., 2:] * distance.prod(-1, keepdim=True)).square().sum(-1)
    torch.testing.assert_close((-exponent).exp(), torch.full_like(exponent, 0.5))


def test_offsets_and_widths_are_the_priors_in_cells(modulated):
    kind, model, inspection = modulated
    if kind in BOX_TIED:
        return
    given = inspection.calls[model.decoder.layers[-1].cross_attn].arguments['priors']
    prior = inspection.maps(QUERIES).prior
    betas = model.decoder.layers[-1].spatial_prior.betas
    for level, expected in enumerate(given):
        stride, scales = model.strides[level], prior.widths[level]
        torch.testing.assert_close(
            scales.square() / betas[level], expected.precisions[0, :, QUERIES]
        )
        cells = prior.offsets[level] + prior.centers / stride
        torch.testing.assert_close(cells, expected.centers[0, :, QUERIES])
    if kind == 'head-shared':
        assert prior.offsets.abs().max() < 1e-12


def test_level_shares_are_parts_of_the_whole(modulated):
    kind, model, inspection = modulated
    maps = inspection.maps(QUERIES)
    shares = maps.level_shares
    torch.testing.assert_close(shares.sum(-1), torch.ones_like(shares[..., 0]))
    if kind == 'uniform':
        torch.testing.assert_close(shares, torch.full_like(shares, 1 / 3))
    if kind == 'learned':
        layer = model.decoder.layers[-1].cross_attn
        features = inspection.calls[layer].arguments['features'][0, QUERIES]
        alpha = layer.scale_selection(features).softmax(-1)
        torch.testing.assert_close(shares, alpha.detach().expand_as(shares))
    if kind in BOX_TIED:
        torch.testing.assert_close(maps.prior_shares.sum(-1), torch.ones_like(shares[..., 0]))
        assert not torch.allclose(maps.prior_shares, shares)


def test_padding_gets_no_weight(modulated):
    _, _, inspection = modulated
    maps = inspection.maps(QUERIES)
    padded = 0
    for weights, stride in zip(maps.weights, maps.strides, strict=True):
        height, width = (-(-side // stride) for side in SIZE)
        assert not weights[..., height:, :].any() and not weights[..., width:].any()
        padded += weights.shape[-2] > height
    assert padded  # otherwise nothing was tested


@pytest.fixture(scope='module', params=BOX_TIED)
def box_tied(request):
    return request.param, *look(request.param)[:2]


def test_prior_alone_gives_levels_what_gaussians_and_gates_do(box_tied):
    _, model, inspection = box_tied
    maps = inspection.maps(QUERIES)
    values = [g * gate for g, gate in zip(maps.gaussians, gates_of(model, inspection), strict=True)]
    padding = inspection.calls[model.decoder.layers[-1].cross_attn].arguments['grid'].padding
    sizes = [value[0, 0].numel() for value in values]
    masks = padding.split(sizes, dim=1)
    sums = torch.stack(
        [
            value.flatten(-2).masked_fill(mask, 0).sum(-1)
            for value, mask in zip(values, masks, strict=True)
        ],
        dim=-1,
    )
    torch.testing.assert_close(sums / sums.sum(-1, keepdim=True), maps.prior_shares)


def test_gaussians_are_tied_to_the_box_that_the_layer_was_given(box_tied):
    """And that is the box which the layer before has made, unless the prior is static."""
    kind, model, inspection = box_tied
    height, width = SIZE
    for number, layer in enumerate(model.decoder.layers):
        prior = inspection.maps(QUERIES, number).prior
        given = inspection.calls[layer].arguments['boxes'][0, QUERIES]
        centers, sides = (given * torch.tensor([width, height] * 2)).split(2, dim=-1)
        torch.testing.assert_close(
            prior.boxes, torch.cat((centers - sides / 2, centers + sides / 2), dim=-1)
        )
        expected = inspection.calls[layer.cross_attn].arguments['prior']
        stride = layer.spatial_prior.strides[0]
        peaks = (centers + prior.offsets[0] * sides) / stride
        torch.testing.assert_close(peaks, expected.centers[0][:, QUERIES])
        deviations = prior.widths[0] * sides / stride
        torch.testing.assert_close(0.5 / deviations**2, expected.precisions[0][:, QUERIES])
    first, last = (inspection.maps(QUERIES, number).prior.boxes for number in (0, -1))
    assert torch.equal(first, last) == (kind == 'static')


@pytest.mark.parametrize('kind', ['single scale', 'box'])
def test_boxes_and_scores_are_the_predictions(kind):
    _, inspection, predictions = look(kind)
    best = inspection.best_queries(5)
    for query in best:
        same = (predictions.bboxes - inspection.boxes[query]).abs().amax(dim=1) < 1e-9
        of_class = predictions.labels == inspection.labels[query]
        scores = predictions.scores[same & of_class]
        assert torch.isclose(scores, inspection.scores[query]).any()
    assert torch.isclose(inspection.scores[best[0]], predictions.scores.max())


def test_what_does_not_exist_is_named():
    _, inspection, _ = look('single scale')
    for query in (-1, 25):
        with pytest.raises(VisualizationError, match=f'query {query} does not exist.*0 to 24'):
            inspection.maps([0, query])
    with pytest.raises(VisualizationError, match='layer 3 does not exist.*0 to 2'):
        inspection.maps([0], layer=3)


def test_classes_without_a_name_have_a_number():
    """Also in MMDetection's drawing, which takes a colour and a name for every class."""
    _, inspection, _ = look('box')
    assert inspection.classes[:2] == ['class 0', 'class 1']
    assert detections_image(inspection, QUERIES, -1).std() > 10
