"""A DINO converts into an SMCA-DINO: fits against known answers, and the tool on random weights."""

import copy
import json
import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.layers import coordinate_to_encoding
from mmdet.registry import MODELS
from mmengine.config import Config
from utils import ROOT, batch, load_config, randomise, shrink

from mmsmca.config_scope import config_path
from mmsmca.conversion import from_deformable_detr, from_dino, imitation
from mmsmca.conversion.comparison import compare
from mmsmca.conversion.convert import build, convert
from mmsmca.conversion.images import split_images
from mmsmca.conversion.proposals import fit_queries
from mmsmca.conversion.ridge import Ridge
from mmsmca.conversion.sampling import level_moments, moments, sampled_points
from mmsmca.errors import ConfigError, DataError, UserError
from mmsmca.models.detectors.smca_detr import SMCADETR

DINO_CONFIG = 'small/dino_r18w16_1xb4-3ki_shapes192.py'
SMCA_DINO_CONFIG = 'small/smca-dino_r18w16_1xb4-3ki_shapes192.py'
FROM_DINO = sorted((ROOT / 'configs').rglob('*_from-d*_*.py'))
TWO_STAGES = 'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py'
SMALLER = {
    'model.num_queries': 8, 'model.encoder.num_layers': 1, 'model.decoder.num_layers': 2,
    'model.test_cfg.max_per_img': 8,
}  # fmt: skip


def test_ridge_recovers_a_linear_map_and_says_what_is_left():
    torch.manual_seed(0)
    weight, bias = torch.randn(3, 5), torch.randn(3)
    x, noise = torch.randn(40, 50, 5), 0.5 * torch.randn(40, 50, 3)
    weights = torch.rand(40, 50)
    fit = Ridge(5, 3)
    for i in range(40):
        fit.add(x[i], x[i] @ weight.T + bias + noise[i], weights[i])
    fitted, intercept = fit.solve(torch.zeros(3, 5), torch.zeros(3))
    # By weighted least squares on all samples at once; the ridge is a thousandth.
    rows = torch.cat((x.flatten(0, 1), torch.ones(2000, 1)), dim=1) * weights.reshape(-1, 1).sqrt()
    targets = (x @ weight.T + bias + noise).flatten(0, 1) * weights.reshape(-1, 1).sqrt()
    expected = torch.linalg.lstsq(rows, targets).solution
    torch.testing.assert_close(fitted, expected[:-1].T, rtol=0, atol=5e-3)
    torch.testing.assert_close(intercept, expected[-1], rtol=0, atol=5e-3)
    left = (weights[..., None] * noise.square()).sum()
    y = x @ weight.T + bias + noise
    mean = (weights[..., None] * y).sum((0, 1)) / weights.sum()
    share = left / (weights[..., None] * (y - mean).square()).sum()
    assert fit.unexplained(weight, bias) == pytest.approx(share.item(), rel=1e-5)
    # Towards another start, where the inputs say nothing.
    silent = Ridge(5, 3)
    silent.add(torch.zeros(10, 5), torch.zeros(10, 3), torch.ones(10))
    silent.moments += torch.eye(9, dtype=torch.float64) * 1e-9
    kept, _ = silent.solve(weight, bias)
    torch.testing.assert_close(kept, weight, rtol=1e-2, atol=1e-2)


def test_moments_are_those_of_the_points_that_deformable_attention_reads():
    """The mean position, read off an image whose values are its coordinates."""
    torch.manual_seed(0)
    attention = MultiScaleDeformableAttention(16, 2, 2, 3, dropout=0.0, batch_first=True)
    randomise(attention.attention_weights)
    attention.sampling_offsets.weight.data.normal_(std=0.05)
    query, query_pos = torch.randn(1, 4, 16), torch.randn(1, 4, 16)
    boxes = torch.tensor([0.5, 0.5, 0.2, 0.1]).expand(1, 4, 1, 4).expand(1, 4, 2, 4)
    offsets, weights = sampled_points(attention, query + query_pos)
    means, widths, gates = moments(offsets, weights, (8, 16))
    # Each head's first two values are x and y of the cell; nothing else is projected.
    shapes = torch.tensor([(64, 64), (32, 32)])
    grid = [
        torch.stack(torch.meshgrid(*[(torch.arange(n) + 0.5) / n] * 2, indexing='xy'), -1)
        for n in (64, 32)
    ]
    cells = torch.zeros(1, 64 * 64 + 32 * 32, 16)
    for head in range(2):
        cells[0, :, 8 * head : 8 * head + 2] = torch.cat([g.flatten(0, 1) for g in grid])
    for linear in (attention.value_proj, attention.output_proj):
        linear.weight.data.copy_(torch.eye(16))
        linear.bias.data.zero_()
    read = attention(
        query=query, query_pos=query_pos, value=cells, identity=torch.zeros(1, 4, 16),
        reference_points=boxes, spatial_shapes=shapes, level_start_index=torch.tensor([0, 64 * 64]),
    )  # fmt: skip
    read = read.unflatten(-1, (2, 8))[..., :2]
    expected = boxes[:, :, :1, :2] + means * boxes[:, :, :1, 2:]
    torch.testing.assert_close(read, expected, rtol=0, atol=1e-3)
    spread = (weights[..., None] * (offsets - means[..., None, None, :]).square()).sum((-3, -2))
    torch.testing.assert_close(widths.exp(), spread.sqrt().clamp(min=0.02))
    torch.testing.assert_close(
        gates[..., 1] - gates[..., 0],
        (4 * weights[..., 1, :].sum(-1) / weights[..., 0, :].sum(-1)).log(),
    )


@pytest.fixture(scope='module')
def detectors():
    """A DINO with random weights that matter, and configs of SMCA-DINOs with both encoders."""
    torch.manual_seed(0)
    source, own = load_config(DINO_CONFIG), load_config(SMCA_DINO_CONFIG)
    for cfg in (source, own):
        cfg.merge_from_dict(SMALLER | ({} if cfg is source else {'model.encoder.num_layers': 1}))
    deformable = copy.deepcopy(own)
    deformable.model.encoder = dict(source.model.encoder, type='SMCADeformableEncoder')
    dino = build(source)
    for layer in dino.decoder.layers:
        randomise(layer.cross_attn.attention_weights)
        layer.cross_attn.sampling_offsets.weight.data.normal_(std=0.03)
    return dino.eval(), source, own, deformable


def batches(count=3):
    for i in range(count):
        torch.manual_seed(i)
        yield dict(
            inputs=[*batch((80, 96), (64, 90))[0]], data_samples=batch((80, 96), (64, 90))[1]
        )


def test_fits_explain_what_the_initial_prior_does_not(detectors):
    dino, _, _, deformable = detectors
    smca_dino = build(deformable).eval()
    fresh = from_dino.carry_over(dino.state_dict(), smca_dino)
    assert all('spatial_prior' in n or 'query_proj' in n or 'key_proj' in n for n in fresh)
    before = copy.deepcopy(smca_dino.state_dict())
    shares = from_dino.fit_priors(dino, smca_dino, batches())
    assert all(row['offsets'] < 0.5 for row in shares)
    rows = from_dino.fit_outputs(dino, smca_dino, batches())
    assert all(row['after'] < row['before'] for row in rows)
    changed = {n for n, x in smca_dino.state_dict().items() if not torch.equal(x, before[n])}
    assert all('spatial_prior' in name or 'output_proj' in name for name in changed)


def test_the_observed_boxes_are_those_of_the_content(detectors):
    """DINO scales its boxes by the share of content in a padded batch; the decoder's are not."""
    dino = detectors[0]
    given = []
    handle = dino.decoder.register_forward_pre_hook(
        lambda module, args, kwargs: given.append(kwargs['reference_points']), with_kwargs=True
    )
    with torch.no_grad(), from_dino.observing(dino) as layers:
        from_dino.run_dino(dino, next(batches()))
    handle.remove()
    torch.testing.assert_close(layers[0]['boxes'], given[0])


def test_published_position_embeddings_load(detectors):
    """MMDetection 3 publishes half of the inputs: at these frequencies the outputs are equal."""
    dino = detectors[0]
    name = 'decoder.ref_point_head.layers.0.weight'
    channels = dino.embed_dims
    published = torch.randn(channels, 2 * channels)
    weight = from_dino.current_names({name: published}, dino)[name]
    boxes = torch.rand(1, 5, 4)
    torch.testing.assert_close(
        coordinate_to_encoding(boxes, num_feats=channels) @ weight.T,
        coordinate_to_encoding(boxes, num_feats=channels // 2) @ published.T,
        rtol=0, atol=1e-4,
    )  # fmt: skip


@pytest.mark.parametrize(
    ('changes', 'words'),
    [
        ({'num_queries': 9}, ['8 queries', '9']),
        ({'data_preprocessor.bgr_to_rgb': False}, ['True', 'data_preprocessor', 'False']),
        ({'decoder.num_layers': 1}, ['2 layers', '1']),
        ({'bbox_head.num_classes': 7}, ['6 classes', '7']),
        ({'decoder.layer_cfg.self_attn_cfg.num_heads': 4,
          'decoder.layer_cfg.cross_attn_cfg.num_heads': 4}, ['8 heads', '4']),
        ({'as_two_stage': False}, ['--to', 'two-stage']),
        ({'decoder.layer_cfg.spatial_prior_cfg.gated': False}, ['--to', 'gated']),
    ],
)  # fmt: skip
def test_other_architectures_are_refused(detectors, changes, words):
    dino, _, own, _ = detectors
    cfg = copy.deepcopy(own)
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    with pytest.raises(ConfigError) as error:
        from_dino.check_models(dino, MODELS.build(cfg.model))
    for word in words:
        assert word in str(error.value)


def small(cfg):
    """A detector of MMDetection's or ours with a small backbone, and few queries."""
    shrink(cfg.model)
    return MODELS.build(cfg.model)


def initialised(names, options):
    """Detectors with small backbones and initial weights."""
    detectors = []
    for name in names:
        cfg = load_config(name)
        shrink(cfg.model)
        cfg.merge_from_dict(options)
        detectors.append(build(cfg).eval())
    return detectors


def assert_every_tensor_has_its_place(source, target):
    dino, smca_dino = small(load_config(source)), small(load_config(target))
    kind = from_deformable_detr if isinstance(smca_dino, SMCADETR) else from_dino
    kind.check_models(dino, smca_dino)
    fresh = kind.carry_over(dino.state_dict(), smca_dino)
    fitted = ['spatial_prior', 'query_proj', 'key_proj', 'scale_selection', 'center_head']
    if from_dino.has_proposals(dino):
        fitted += ['query_embedding', 'ref_point_head', 'decoder.norm', 'dn_query_generator']
    assert all(n.startswith('encoder.') or any(part in n for part in fitted) for n in fresh)


@pytest.mark.parametrize('path', FROM_DINO, ids=lambda path: path.stem)
def test_a_config_of_a_conversion_names_weights_that_fit(path):
    """Its first lines have the command, and the weights as MMDetection publishes them."""
    target, text = path.relative_to(ROOT / 'configs'), path.read_text()
    shell = re.sub(r'\\\n#', '', text)
    command = re.search('python tools/convert_dino.py (.*)', shell)[1].split()
    source, out, to = command[0], command[2], command[command.index('--to') + 1]
    assert to == f'configs/{target}' and out == load_config(target).load_from
    published = yaml.safe_load(Path(config_path(source)).with_name('metafile.yml').read_text())
    (model,) = [m for m in published['Models'] if Path(m['Config']).name == Path(source).name]
    assert f'# {model["Weights"]}\n' in text
    assert f'box AP {model["Results"][0]["Metrics"]["box AP"]},' in text
    assert_every_tensor_has_its_place(source, target)


@pytest.mark.parametrize(
    'target',
    [
        'smca-dino_r50_8xb2-12e_coco.py',
        'ablation/smca-dino_r50_deformable-encoder_8xb2-12e_coco.py',
    ],
)
def test_every_tensor_of_dino_as_it_ships_has_its_place(target):
    source = 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py'
    assert_every_tensor_has_its_place(source, f'smca_dino/{target}')


@pytest.mark.parametrize(
    ('target', 'words'),
    [
        # Only its own encoder has inputs of DINO's.
        ('deformable-encoder', "'temperature': 10000.*positional_encoding"),
        ('conv-encoder', 'all levels of the neck'),
        ('coarse-first', 'all levels of the neck'),
        ('intra-multi-encoder', '4 levels .* 3'),
    ],
)
def test_other_configs_are_refused(target, words):
    dino = small(load_config('mmdet::dino/dino-4scale_r50_improved_8xb2-12e_coco.py'))
    target = f'smca_dino/ablation/smca-dino_r50_{target}_8xb2-12e_coco.py'
    with pytest.raises(ConfigError, match=words):
        from_dino.check_models(dino, small(load_config(target)))


@pytest.mark.parametrize(
    ('name', 'kind'),
    [
        ('deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco', 'DeformableDETR'),
        ('ddq/ddq-detr-4scale_r50_8xb2-12e_coco', 'DDQDETR'),
    ],
)
def test_other_detectors_are_refused(detectors, name, kind):
    other = small(load_config(f'mmdet::{name}.py'))
    with pytest.raises(ConfigError, match=f'a {kind} of this config cannot be converted'):
        from_dino.check_models(other, build(detectors[2]))


def test_queries_of_proposals_become_those_of_dino():
    torch.manual_seed(0)
    fewer = {'model.num_queries': 8, 'model.encoder.num_layers': 1, 'model.decoder.num_layers': 2}
    target = 'smca_dino/smca-dino_r50_from-deformable-detr_8xb2-5e_coco.py'
    detr, smca_dino = initialised((TWO_STAGES, target), fewer)
    for layer in detr.decoder.layers:
        layer.norms[2].weight.data.fill_(1.5)
        layer.norms[2].bias.data.fill_(0.3)
    tensors = from_dino.current_names(detr.state_dict(), detr)
    classifier = tensors['bbox_head.cls_branches.2.weight']
    assert torch.equal(classifier, classifier[:1].expand_as(classifier))
    from_dino.carry_over(tensors, smca_dino)
    content, position = fit_queries(detr, smca_dino, batches())
    # The mean of the contents is all that is left of them, and positions depend on the boxes.
    assert 0 < content < 0.5 and 0 <= position < 0.1
    normalised = 0.3 + 1.5 * torch.nn.functional.layer_norm(torch.randn(3, 256), (256,))
    torch.testing.assert_close(smca_dino.decoder.norm(normalised), normalised)
    with torch.no_grad(), from_dino.observing(detr) as layers:
        from_dino.run_dino(detr, next(batches()))
    encoding = coordinate_to_encoding(layers[0]['boxes'], num_feats=256)
    error = smca_dino.decoder.ref_point_head(encoding) - layers[0]['query_pos']
    assert error.square().mean() < 0.1 * layers[0]['query_pos'].var((0, 1)).mean()


@pytest.fixture(scope='module')
def one_stage():
    """A Deformable DETR with random weights that matter, and an SMCA with its encoder."""
    torch.manual_seed(0)
    source = 'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py'
    target = 'smca/smca-deformable-encoder_r50_from-deformable-detr_8xb1-5e_coco.py'
    detr, smca = initialised((source, target), SMALLER)
    for layer in detr.decoder.layers:
        randomise(layer.cross_attn.attention_weights)
        layer.cross_attn.sampling_offsets.weight.data.normal_(std=0.03)
    return detr, smca


def test_an_smca_looks_where_deformable_detr_samples(one_stage):
    detr, smca = one_stage
    from_deformable_detr.check_models(detr, smca)
    from_deformable_detr.carry_over(detr.state_dict(), smca)
    queries, (head, own) = detr.query_embedding.weight, (detr.bbox_head, smca.bbox_head)
    with torch.no_grad():
        # Normalised vectors, as the last layer gives.
        x = torch.nn.functional.layer_norm(torch.randn(2, 8, 256), (256,))
        points = detr.reference_points_fc(queries[:, :256])
        features = smca.decoder.layers[0].spatial_prior.features(
            torch.zeros(8, 256), smca.query_embedding.weight
        )
        torch.testing.assert_close(smca.decoder.center_head(features), points, rtol=0, atol=1e-4)
        scores, boxes = own(smca.decoder.post_norm(x)[None], points[None, None])
        expected_scores, expected_boxes = head(x[None], [points.sigmoid()[None]])
    torch.testing.assert_close(scores, expected_scores, rtol=0, atol=1e-3)
    torch.testing.assert_close(boxes, expected_boxes, rtol=0, atol=1e-3)
    shares = from_deformable_detr.fit_priors(detr, smca, batches())
    assert all(share < 0.5 for row in shares for share in row.values())
    rows = from_deformable_detr.fit_outputs(detr, smca, batches())
    assert all(row['after'] < 0.5 * row['before'] for row in rows)


def test_moments_of_a_level_are_in_its_cells():
    """Two points of the first level at 1 and 3 cells, one of the second; weights differ."""
    offsets = torch.tensor([[[1.0, 0.0], [3.0, 0.0]], [[-2.0, 5.0], [9.0, 9.0]]])
    weights = torch.tensor([[0.2, 0.2], [0.6, 0.0]])
    row = level_moments(offsets[None, None, None], weights[None, None, None], (16.0, 8.0))
    x, y = row['offsets'].unflatten(-1, (2, 1, 2))[0, 0, :, 0].T
    torch.testing.assert_close(x, torch.tensor([1.5, -2.5]))
    torch.testing.assert_close(y, torch.tensor([-0.5, 4.5]))
    scales = row['scales'].unflatten(-1, (2, 1, 2))[0, 0, :, 0]
    sixth = 1 / 6
    torch.testing.assert_close(
        scales.square(), torch.tensor([[8 / (1 + sixth), 8 / sixth], [4 / sixth, 4 / sixth]])
    )
    torch.testing.assert_close(row['scale_selection'].softmax(-1)[0, 0], torch.tensor([0.4, 0.6]))


@pytest.mark.parametrize(
    ('source', 'target', 'words'),
    [
        ('deformable-detr-refine', 'deformable-encoder', 'one stage and without refinement'),
        ('deformable-detr', 'multi-scale', '4 levels .* 3'),
        ('deformable-detr', 'multi-scale-conv', 'all levels of the neck'),
    ],
)
def test_what_does_not_become_an_smca_is_refused(source, target, words):
    detr = small(load_config(f'mmdet::deformable_detr/{source}_r50_16xb2-50e_coco.py'))
    with pytest.raises(ConfigError, match=words):
        from_deformable_detr.check_models(
            detr, small(load_config(f'smca/smca-{target}_r50_8xb1-50e_coco.py'))
        )


def test_a_target_without_a_decoder_is_refused(detectors):
    with pytest.raises(ConfigError, match='--to must name a config of a two-stage SMCADINO'):
        from_dino.check_models(detectors[0], torch.nn.Identity())


@pytest.fixture
def files(detectors, tmp_path, monkeypatch):
    """Configs, a checkpoint and images on disk."""
    dino, source, own, deformable = detectors
    monkeypatch.chdir(tmp_path)
    for name, cfg in (('dino', source), ('own', own), ('deformable', deformable)):
        cfg.dump(f'{name}.py')
    torch.save(dict(state_dict=dino.state_dict()), 'dino.pth')
    (tmp_path / 'images/more').mkdir(parents=True)
    generator = np.random.default_rng(0)
    names = [f'{"more/" if i % 2 else ""}{i}.{"PNG" if i == 3 else "png"}' for i in range(12)]
    for i, name in enumerate(names):
        image = generator.integers(0, 255, (60 + i, 90, 3), np.uint8)
        cv2.imwrite(f'images/{name}', image)
    images = [
        dict(id=i, file_name=name, height=60 + i, width=90) for i, name in enumerate(names, 1)
    ]
    box = dict(category_id=1, bbox=[10, 10, 30, 30], area=900, iscrowd=0)
    content = dict(
        images=images,
        annotations=[dict(box, id=image['id'], image_id=image['id']) for image in images],
        categories=[dict(id=i, name=name) for i, name in enumerate(source.metainfo.classes, 1)],
    )
    Path('annotations.json').write_text(json.dumps(content))
    return dict(
        config='dino.py', checkpoint='dino.pth', images='images', fit_images=6, iterations=6,
        batch_size=2,
    )  # fmt: skip


def test_conversion_with_the_same_encoder(files, capsys):
    convert(**files, to='deformable.py', out='start.pth', annotations='annotations.json')
    printed = capsys.readouterr().out
    assert 'layer 1: not explained by its Gaussians: offsets' in printed
    assert 'on 2 other images' in printed and 'SMCA-DINO: box AP 0.' in printed
    written = torch.load('start.pth', weights_only=True)['state_dict']
    theirs = torch.load('dino.pth', weights_only=True)['state_dict']
    assert torch.equal(
        written['encoder.layers.0.norms.0.weight'], theirs['encoder.layers.0.norms.0.weight']
    )
    smca_dino = build(Config.fromfile('deformable.py'))
    smca_dino.load_state_dict(written)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (None, 'mine.json cannot be read'),
        (dict(images=[]), 'mine.json cannot be read'),
        (dict(images=[], annotations=[]), 'mine.json has none of the images of --images images'),
    ],
)
def test_annotations_are_read_before_the_work(files, content, words):
    if content is not None:
        Path('mine.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=words):
        convert(**files, to='own.py', out='start.pth', annotations='mine.json')


def test_interrupted_imitation_continues(files, monkeypatch):
    seen = []
    loss = imitation.EncoderImitation.forward

    def interrupted(self, *args, **kwargs):
        seen.append(1)
        if len(seen) == 5:
            raise KeyboardInterrupt
        return loss(self, *args, **kwargs)

    monkeypatch.setattr(imitation.EncoderImitation, 'forward', interrupted)
    monkeypatch.setattr(imitation, 'SAVE_INTERVAL', 2)
    monkeypatch.setattr(imitation, 'NUM_WORKERS', 0)
    with pytest.raises(KeyboardInterrupt):
        convert(**files, to='own.py', out='start.pth', amp=True)
    # Another command begins anew.
    convert(**files | dict(iterations=1), to='own.py', out='other.pth', amp=True)
    assert len(seen) == 5 + 1
    convert(**files, to='own.py', out='start.pth', amp=True)
    # Four iterations before, two after the checkpoint of the fourth.
    assert len(seen) == 5 + 1 + 2
    assert not [path for path in Path().glob('start*') if path.is_dir()]
    own = build(Config.fromfile('own.py'))
    own.load_state_dict(torch.load('start.pth', weights_only=True)['state_dict'])


def test_what_is_wrong_with_the_images_is_said(files):
    with pytest.raises(DataError, match='nowhere is not a folder'):
        convert(**files | dict(images='nowhere'), to='own.py', out='start.pth')
    Path('empty').mkdir()
    with pytest.raises(DataError, match='empty has less than two images'):
        convert(**files | dict(images='empty'), to='own.py', out='start.pth')
    _, (broken, *_) = split_images('images')
    Path(broken).write_text('no image')
    with pytest.raises(UserError, match=broken):
        convert(**files, to='deformable.py', out='start.pth')


def test_an_image_that_is_removed_leaves_the_others_where_they_are(files):
    fit, compared = split_images('images')
    Path(fit[3]).unlink()
    assert split_images('images') == (fit[:3] + fit[4:], compared)


def test_comparison_finds_a_detector_in_itself(detectors):
    dino = detectors[0]
    twin = copy.deepcopy(dino)
    # Scores of random weights are low.
    for detector in (dino, twin):
        for branch in detector.bbox_head.cls_branches:
            branch.bias.data.fill_(0.0)
    row = compare(dino, twin, batches())
    assert row['detections'] == row['found'] > 0
    assert row['iou'] == pytest.approx(1) and row['score'] == pytest.approx(0, abs=1e-6)
