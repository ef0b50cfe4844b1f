"""Pictures of the co-attention show what the layers compute, and the hook changes no training."""

import copy
import importlib.util
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from mmdet.structures import DetDataSample
from mmengine.runner import Runner
from test_training import options
from utils import ROOT, build_detector, load_config

from mmsmca.datasets.shapes import make_shapes
from mmsmca.errors import ConfigError
from mmsmca.models.layers.dino_decoder import SMCADINODecoderLayer
from mmsmca.visualization.image_frame import ImageFrame
from mmsmca.visualization.inspection import (
    Inspection,
    VisualizationError,
    check_spatial_prior,
    inspect_image,
    record,
)
from mmsmca.visualization.spatial_prior_hook import SpatialPriorHook

SINGLE = 'shapes/smca_r18_shapes.py'
MULTI = 'shapes/smca-multi-scale_r18_shapes.py'
DINO = 'head_to_head/smca-dino_r18_head-to-head_shapes.py'
DETR = 'head_to_head/detr_r18_head-to-head_shapes.py'
CONV_ENCODER = dict(
    _delete_=True,
    type='SMCAConvEncoder',
    num_layers=1,
    num_levels=3,
    layer_cfg=dict(
        self_attn_cfg=dict(embed_dims=128),
        ffn_cfg=dict(embed_dims=128, feedforward_channels=64, ffn_drop=0.0),
    ),
)
MODELS = {
    'single scale': (SINGLE, {}),
    'head-shared': (SINGLE, dict(spatial_prior_cfg=dict(head_shared=True))),
    'fixed': (SINGLE, dict(spatial_prior_cfg=dict(scale='fixed'))),
    'isotropic': (SINGLE, dict(spatial_prior_cfg=dict(scale='isotropic'))),
    'covariance': (SINGLE, dict(spatial_prior_cfg=dict(scale='covariance'))),
    'learned': (MULTI, {}),
    'uniform': (MULTI, dict(cross_attn_cfg=dict(scale_selection='uniform'))),
    'joint': (MULTI, dict(cross_attn_cfg=dict(scale_selection='joint'))),
    'conv': (MULTI, {}),
    'box': (DINO, {}),
    'static': (DINO, dict(spatial_prior_cfg=dict(_delete_=True, type='StaticPrior'))),
}
BOX_TIED = ('box', 'static')
SIZE = (72, 104)  # height and width; padded to 96 x 128
QUERIES = [3, 0, 17]


def build(kind):
    """Detector in float64 with weights that no symmetry hides behind."""
    torch.manual_seed(0)
    without_prior = DINO, dict(spatial_prior_cfg=dict(_delete_=True, type='NoPrior'))
    of_kind = {**MODELS, 'no prior': without_prior, 'detr': (DETR, {})}[kind]
    name, layer_cfg = copy.deepcopy(of_kind)  # merging takes _delete_ out of it
    model_options = dict(data_preprocessor=dict(pad_size_divisor=32))
    if layer_cfg:
        model_options['decoder'] = dict(layer_cfg=layer_cfg)
    if kind == 'conv':
        model_options['encoder'] = CONV_ENCODER
        model_options['decoder'] = dict(strides=[16, 16, 32])
    model = build_detector(name, model_options).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def look(model):
    """Inspect a random image of half its size in the network; its predictions as well."""
    sample = DetDataSample(
        metainfo=dict(img_shape=SIZE, ori_shape=(36, 52), scale_factor=(2.0, 2.0), img_id=0)
    )
    generator = torch.Generator().manual_seed(1)
    image = torch.randint(0, 256, (3, *SIZE), generator=generator, dtype=torch.uint8)
    data = model.data_preprocessor(dict(inputs=[image], data_samples=[sample]))
    with torch.no_grad(), record(model) as calls:
        samples = model.predict(data['inputs'].double(), data['data_samples'])
    return Inspection(model, calls, samples[0]), samples[0].pred_instances


@pytest.fixture(scope='module', params=MODELS)
def modulated(request):
    model = build(request.param)
    return request.param, model, look(model)[0]


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
        out = weighted_values(maps, value(given['memory'])[0])
        expected = (result - given['query'])[:, QUERIES]
        torch.testing.assert_close(output(out[None]), expected, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_maps_of_detr_times_values_are_its_output():
    model = build('detr')
    inspection, _ = look(model)
    for number, layer in enumerate(model.decoder.layers):
        maps = inspection.maps(QUERIES, number)
        attention = layer.cross_attn.attn
        given, (result, _) = inspection.calls[attention]
        channels = attention.embed_dim
        weight, bias = attention.in_proj_weight[-channels:], attention.in_proj_bias[-channels:]
        value = torch.nn.functional.linear(given['value'][:, 0], weight, bias)
        value = value.unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
        out = attention.out_proj(weighted_values(maps, value).transpose(0, 1).flatten(1))
        torch.testing.assert_close(out, result[QUERIES, 0], rtol=1e-9, atol=1e-11)
        assert maps.strides == (16.0,)
        # Averaged over heads, as the model itself asks for, they would all be the same.
        assert not torch.allclose(maps.weights[0][0], maps.weights[0][1])


def gates_of(model, inspection):
    """Factor of each level's Gaussians in the last layer, (M, Q, 1, 1) a level."""
    prior = inspection.calls[model.decoder.layers[-1].cross_attn].arguments['prior']
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
    if kind in ('joint', *BOX_TIED):
        sums = sums.sum(0).expand_as(sums)
    for product, total, weights in zip(products, sums, maps.weights, strict=True):
        torch.testing.assert_close(product / total[..., None, None], weights)


def test_gaussians_peak_where_centres_and_offsets_say(modulated):
    kind, _, inspection = modulated
    maps = inspection.maps(QUERIES)
    for prior, gaussian, offsets, stride in zip(
        maps.priors, maps.gaussians, maps.offsets, maps.strides, strict=True
    ):
        height, width = gaussian.shape[-2:]
        place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).flip(1)
        distance = place + maps.cell_place - (maps.centers / stride + offsets)[..., None, :]
        terms = prior.scales[..., None, :2] * distance
        exponent = terms.square().sum(-1)
        if kind == 'covariance':
            exponent += (prior.scales[..., 2:] * distance.prod(-1)).square()
        torch.testing.assert_close((-exponent / prior.beta).exp(), gaussian.flatten(-2))
        if kind == 'head-shared':
            assert offsets.abs().max() < 1e-12


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
    model = build(request.param)
    return request.param, model, look(model)[0]


def test_attention_of_the_prior_alone_is_that_of_gaussians_and_gates(box_tied):
    _, model, inspection = box_tied
    maps = inspection.maps(QUERIES)
    values = [g * gate for g, gate in zip(maps.gaussians, gates_of(model, inspection), strict=True)]
    padding = inspection.calls[model.decoder.layers[-1].cross_attn].arguments['cells'].padding
    values = torch.cat([value.flatten(-2) for value in values], dim=-1).masked_fill(padding, 0)
    weights = torch.cat([weights.flatten(-2) for weights in maps.prior_weights], dim=-1)
    torch.testing.assert_close(values / values.sum(-1, keepdim=True), weights)


def test_gaussians_are_tied_to_the_box_that_the_layer_was_given(box_tied):
    """And that is the box which the layer before has made, unless the prior is static."""
    kind, model, inspection = box_tied
    height, width = SIZE
    for number, layer in enumerate(model.decoder.layers):
        maps = inspection.maps(QUERIES, number)
        given = inspection.calls[layer].arguments['boxes'][0, QUERIES]
        pixels = given * torch.tensor([width, height] * 2)
        sides = pixels[:, 2:]
        torch.testing.assert_close(
            maps.boxes,
            torch.cat((pixels[:, :2], pixels[:, :2]), -1) + torch.cat((-sides, sides), -1) / 2,
        )
        prior = inspection.calls[layer.cross_attn].arguments['prior']
        centers = (pixels[:, :2] + maps.box_offsets * sides) / maps.strides[0]
        torch.testing.assert_close(centers, prior.centers[0][:, QUERIES])
        deviations = maps.box_deviations * sides / maps.strides[0]
        torch.testing.assert_close(0.5 / deviations**2, prior.precisions[0][:, QUERIES])
    first, last = (inspection.maps(QUERIES, number).boxes for number in (0, -1))
    assert torch.equal(first, last) == (kind == 'static')


def test_a_decoder_without_a_prior_has_attention_but_no_prior_to_draw():
    model = build('no prior')
    maps = look(model)[0].maps(QUERIES)
    for weights, unmodulated in zip(maps.weights, maps.unmodulated, strict=True):
        torch.testing.assert_close(weights, unmodulated)
    with pytest.raises(ConfigError, match='no spatial prior.*than NoPrior'):
        check_spatial_prior(model)


@pytest.mark.parametrize('kind', ['single scale', 'box', 'detr'])
def test_boxes_and_scores_are_the_predictions(kind):
    inspection, predictions = look(build(kind))
    best = inspection.best_queries(5)
    for query in best:
        same = (predictions.bboxes - inspection.boxes[query]).abs().amax(dim=1) < 1e-9
        of_class = predictions.labels == inspection.labels[query]
        scores = predictions.scores[same & of_class]
        assert torch.isclose(scores, inspection.scores[query]).any()
    assert torch.isclose(inspection.scores[best[0]], predictions.scores.max())


def test_query_nearest_is_the_one_of_that_box():
    inspection, _ = look(build('single scale'))
    query, overlap = inspection.query_nearest(inspection.boxes[7])
    assert torch.equal(inspection.boxes[query], inspection.boxes[7])
    assert overlap == pytest.approx(1)


def frame_of(inspection, strides):
    return ImageFrame(np.zeros((36, 52, 3), np.uint8), inspection, strides)


def test_cells_are_drawn_around_their_places():
    inspection, _ = look(build('single scale'))
    frame = frame_of(inspection, (16, 32))
    fine, coarse = torch.zeros(5, 7), torch.zeros(3, 4)
    fine[1, 2], coarse[1, 0] = 1, 1
    rasters = frame.rasters([fine, coarse])
    # Half a fine cell a step: cell (2, 1) lies at pixel (32, 16), a square from 24 and 8 on.
    assert rasters.shape == (2, 9, 13)
    assert [list(i) for i in np.nonzero(rasters[0])] == [[1, 1, 2, 2], [3, 4, 3, 4]]
    rows, columns = np.nonzero(rasters[1])
    assert (set(rows), set(columns)) == ({2, 3, 4, 5}, {0, 1})
    # A coarse cell's weight is spread over four fine ones.
    assert frame.density([fine, coarse]).max() == 1
    assert frame.density([0 * fine, coarse]).max() == 0.25


def test_cells_of_a_box_tied_prior_begin_at_the_images_edge():
    inspection, _ = look(build('single scale'))
    frame = ImageFrame(np.zeros((36, 52, 3), np.uint8), inspection, (16, 32), cell_place=0.5)
    fine, coarse = torch.zeros(5, 7), torch.zeros(3, 4)
    fine[1, 2], coarse[1, 0] = 1, 1
    rasters = frame.rasters([fine, coarse])
    # Cell (2, 1) is the square from pixel (32, 16) on.
    assert [list(i) for i in np.nonzero(rasters[0])] == [[2, 2, 3, 3], [4, 5, 4, 5]]
    rows, columns = np.nonzero(rasters[1])
    assert (set(rows), set(columns)) == ({4, 5, 6, 7}, {0, 1, 2, 3})
    # In pixels of the image, two of the network's.
    inside = frame.share_inside([fine, 0 * coarse], torch.tensor([16.0, 8, 24, 12]))
    assert inside == pytest.approx(0.5)
    assert list(frame.cell_pixels(torch.tensor([2.0, 1.0]), 16)) == [20, 12]


def test_share_inside_goes_by_area():
    inspection, _ = look(build('single scale'))
    frame = frame_of(inspection, (16,))
    weights = torch.zeros(5, 7)
    weights[1, 2], weights[3, 5] = 0.75, 0.25
    # In pixels of the image, two of the network's: the cell (2, 1) is from 12 to 20, 4 to 12.
    assert frame.share_inside([weights], torch.tensor([12.0, 4, 20, 12])) == pytest.approx(0.75)
    assert frame.share_inside([weights], torch.tensor([12.0, 4, 16, 12])) == pytest.approx(0.375)
    assert frame.share_inside([weights], torch.tensor([0.0, 0, 52, 36])) == pytest.approx(1)
    assert frame.share_inside([weights], torch.tensor([24.0, 0, 30, 12])) == 0


@pytest.mark.parametrize('query', [-1, 25])
def test_query_out_of_range_is_named(query):
    inspection, _ = look(build('single scale'))
    with pytest.raises(VisualizationError, match=f'query {query} does not exist.*0 to 24'):
        inspection.maps([0, query])


def test_layer_out_of_range_is_named():
    inspection, _ = look(build('single scale'))
    with pytest.raises(VisualizationError, match='layer 3 does not exist.*0 to 2'):
        inspection.maps([0], layer=3)


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    """Generated data, and config and untrained checkpoint of an SMCA and a DETR."""
    folder = tmp_path_factory.mktemp('visualization')
    make_shapes(
        folder / 'shapes', num_train=4, num_val=4, size=64, max_objects=2, variant='easy', seed=0
    )
    for name, config in (('smca', SINGLE), ('multi', MULTI), ('dino', DINO), ('detr', DETR)):
        cfg = load_config(config)
        cfg.merge_from_dict(
            {
                'test_dataloader.dataset.data_root': f'{folder}/shapes/',
                'test_evaluator.ann_file': f'{folder}/shapes/annotations/instances_val.json',
            }
        )
        cfg.dump(folder / f'{name}.py')
        torch.manual_seed(0)
        meta = dict(dataset_meta=dict(classes=cfg.test_dataloader.dataset.metainfo.classes))
        weights = build_detector(config).state_dict()
        torch.save(dict(state_dict=weights, meta=meta), folder / f'{name}.pth')
    return folder


def run_tool(monkeypatch, name, *arguments):
    """Run a tool in this process; its exit code."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
    return tool.main()


@pytest.mark.parametrize('name', ['smca', 'multi', 'dino'])
def test_visualize_attention_writes_its_pictures(name, workplace, monkeypatch, tmp_path, capsys):
    image = workplace / 'shapes/val/000001.png'
    files = [workplace / f'{name}.py', workplace / f'{name}.pth', image]
    assert run_tool(monkeypatch, 'visualize_attention', *files, '--out', tmp_path, '--best', 1) == 0
    printed = capsys.readouterr().out.split()[-7:]
    names = ['detections.png']
    names += [f'{n}.{kind}' for n in ('summary', 'row_1', 'layers_1') for kind in ('png', 'svg')]
    assert printed == [str(tmp_path / name) for name in names]
    for path in printed:
        if path.endswith('.png'):
            assert imread(path)[..., :3].std() > 0.05  # something is drawn
        else:
            assert '</svg>' in Path(path).read_text()


def test_compare_attention_writes_its_picture(workplace, monkeypatch, tmp_path):
    arguments = ['--out', tmp_path / 'both', '--images', annotated_image(workplace)]
    for name in ('detr', 'smca'):
        arguments += ['--detector', name, workplace / f'{name}.py', workplace / f'{name}.pth']
    assert run_tool(monkeypatch, 'compare_attention', *arguments) == 0
    assert imread(tmp_path / 'both.png')[..., :3].std() > 0.05
    assert '</svg>' in (tmp_path / 'both.svg').read_text()


def annotated_image(workplace):
    """File name of an image that has an object, whole and not a crowd."""
    content = json.loads((workplace / 'shapes/annotations/instances_val.json').read_text())
    ids = {entry['image_id'] for entry in content['annotations'] if not entry['iscrowd']}
    return next(image['file_name'] for image in content['images'] if image['id'] in ids)


@pytest.mark.parametrize(
    ('config', 'checkpoint', 'image', 'more', 'message'),
    [
        ('smca.py', 'gone.pth', '000001.png', [], 'gone.pth does not exist'),
        ('gone.py', 'smca.pth', '000001.png', [], 'gone.py does not exist'),
        ('smca.py', 'detr.pth', '000001.png', [], 'detr.pth'),
        ('smca.py', 'smca.pth', 'gone.png', [], 'gone.png does not exist'),
        ('smca.py', 'smca.pth', '000001.png', ['--queries', 25], 'query 25 does not exist'),
        ('smca.py', 'smca.pth', '000001.png', ['--layer', 3], 'layer 3 does not exist'),
        ('detr.py', 'detr.pth', '000001.png', [], 'no spatial prior'),
    ],
)
def test_visualize_attention_names_what_is_wrong(
    config, checkpoint, image, more, message, workplace, monkeypatch, tmp_path, capsys
):
    files = [workplace / config, workplace / checkpoint, workplace / 'shapes/val' / image]
    out = ['--out', tmp_path / 'out', *more]
    assert run_tool(monkeypatch, 'visualize_attention', *files, *out) == 2
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert last_line.startswith('visualize_attention.py: error: ') and message in last_line
    assert not (tmp_path / 'out').exists()


def train(workplace, work_dir, epochs, hook=None, resume=False):
    """Train two iterations an epoch."""
    cfg = load_config(SINGLE)
    cfg.merge_from_dict(options(workplace / 'shapes', epochs))
    cfg.merge_from_dict({'train_dataloader.batch_size': 2, 'train_cfg.val_interval': 99})
    cfg.work_dir, cfg.resume, cfg.param_scheduler = str(work_dir), resume, []
    cfg.experiment_name = f'{work_dir.name}_{epochs}'
    cfg.custom_hooks = [hook] if hook else []
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_hook_shows_the_priors_and_changes_nothing(workplace, tmp_path):
    image = str(workplace / 'shapes/val/000001.png')
    hook = dict(type='SpatialPriorHook', image=image, interval=3)
    with_hook = train(workplace, tmp_path / 'with', 2, hook)
    without = train(workplace, tmp_path / 'without', 2)
    for name, weight in without.model.state_dict().items():
        assert torch.equal(weight, with_hook.model.state_dict()[name]), name

    pictures = sorted(p.name for p in tmp_path.glob('with/*/vis_data/vis_image/*'))
    assert pictures == [f'spatial_prior_{i}.png' for i in (0, 3, 4)]
    (log,) = tmp_path.glob('with/*/vis_data/scalars.json')
    first = next(line for line in log.read_text().splitlines() if 'spatial_prior' in line)
    assert '"spatial_prior/layer_0/level_0/scale_x": 1.0' in first  # where scales start

    resumed = train(workplace, tmp_path / 'with', 3, hook, resume=True)
    (found,) = [h for h in resumed.hooks if isinstance(h, SpatialPriorHook)]
    assert found.history['iterations'].tolist() == [0, 3, 4, 6]
    assert found.history['centers'].shape == (4, 25, 2)
    centers = found.history['centers']
    assert not torch.equal(centers[1], centers[3])


class Kept(list):
    """A visualizer that keeps what it is given."""

    def add_scalars(self, scalars, step):
        self.append((step, scalars))

    def add_image(self, name, image, step):
        self.append((step, name, image))


def fake_runner(config, model):
    return SimpleNamespace(
        cfg=load_config(config), model=model, iter=0, max_iters=3, visualizer=Kept()
    )


def test_hook_shows_boxes_and_the_priors_tied_to_them(workplace):
    torch.manual_seed(0)
    model = build_detector(DINO)
    model.init_weights()
    hook = SpatialPriorHook(image=str(workplace / 'shapes/val/000001.png'), interval=2)
    runner = fake_runner(DINO, model)
    hook.before_train(runner)
    with torch.no_grad():
        for layer in model.decoder.layers:
            layer.spatial_prior.gates.bias += torch.tensor([9.0, 0, 0]).repeat(8)
            layer.spatial_prior.offsets.bias *= 2
        # The last layer's box is twice as wide as the one that it looks around: half of it.
        for branch in model.bbox_head.reg_branches[:3]:
            branch[-1].bias.zero_()
        model.bbox_head.reg_branches[2][-1].bias[2] = 0.5
    runner.iter = 1
    hook.after_train_iter(runner, 1)

    (at_first, first), _, (later, second), (step, name, image) = runner.visualizer
    assert (at_first, later, step, name) == (0, 2, 2, 'spatial_prior')
    assert image.std() > 10 and image.shape[1] == 900
    for layer in range(3):
        key = f'spatial_prior/layer_{layer}'
        for level in range(3):
            assert first[f'{key}/level_{level}/weight'] == pytest.approx(1 / 3)
        assert second[f'{key}/level_0/weight'] == pytest.approx(1 / (1 + 2 * math.exp(-9)))
        # Half of the heads look along an axis, half between.
        assert first[f'{key}/offset'] == pytest.approx(0.25 * (1 + math.sqrt(2)) / 2)
        assert second[f'{key}/offset'] == pytest.approx(2 * first[f'{key}/offset'])
        assert first[f'{key}/deviation_x'] > 0.25  # the floor is added to it
    assert second['spatial_prior/layer_2/overlap'] < 0.99
    assert hook.history['iterations'].tolist() == [0, 2]
    inspection = inspect_image(model.eval(), hook.pipeline, hook.image)
    boxes = inspection.boxes[inspection.best_queries(10)] / 64
    torch.testing.assert_close(hook.history['boxes'][-1, -1], boxes)
    assert hook.history['boxes'].shape == (2, 4, 10, 4)


def test_hook_needs_a_spatial_prior(workplace):
    hook = SpatialPriorHook(image=str(workplace / 'shapes/val/000001.png'))
    runner = fake_runner(DETR, build('detr'))
    with pytest.raises(ConfigError, match='no spatial prior'):
        hook.before_train(runner)
