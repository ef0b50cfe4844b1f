"""Warm start from DETR and Deformable DETR: what is shared computes the same, the rest is fresh."""

import re
from pathlib import Path

import golden
import mmengine
import pytest
import torch
from conversion import assert_equal_to_the_bit, convert
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.runner import load_checkpoint
from torch import nn
from utils import ROOT, build_detector, load_config

from mmsmca.checkpoints import files as checkpoint_files
from mmsmca.checkpoints.files import CheckpointError
from mmsmca.checkpoints.names import convert_to_reference
from mmsmca.checkpoints.warm_start import warm_start

AUTHORS = 'multi_scale_conv'
SMCA = 'smca/smca_r50_8xb2-50e_coco.py'
MULTI_SCALE = 'smca/smca-multi-scale_r50_8xb1-50e_coco.py'
HYBRID = 'smca/smca-deformable-encoder_r50_8xb1-50e_coco.py'
FFN = dict(layer_cfg=dict(ffn_cfg=dict(feedforward_channels=64)))
SMALL = dict(
    num_queries=7,
    backbone=dict(depth=18),
    neck=dict(in_channels=[512]),
    encoder=dict(num_layers=2, **FFN),
    decoder=dict(num_layers=2, **FFN),
)
LEVELS = {**SMALL, 'neck': dict(in_channels=[128, 256, 512])}
# What the hybrid lacks of Deformable DETR: norms in the neck, position encoding of cell centres.
NORMS = dict(norm_cfg=dict(type='GN', num_groups=32))


def perturbed(model):
    """A model whose every tensor differs from any initialisation."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        if hasattr(model, 'level_embed'):  # MMDetection leaves there what the memory holds.
            model.level_embed.zero_()
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator)
        for name, buffer in model.named_buffers():
            if 'running' in name:
                buffer += 0.1 * torch.rand(buffer.shape, generator=generator)
    return model.eval()


MMDET_CONFIGS = Path(mmengine.utils.get_installed_path('mmdet')) / '.mim' / 'configs'


def mmdet_model(name, options):
    cfg = Config.fromfile(MMDET_CONFIGS / name)
    cfg.model.backbone.init_cfg = None
    cfg.merge_from_dict(dict(model=options))
    return perturbed(MODELS.build(cfg.model))


def build_hybrid(**neck):
    """Small hybrid with Deformable DETR's position encoding and, with ``NORMS``, its neck."""
    cfg = load_config(HYBRID)
    cfg.merge_from_dict(dict(model=LEVELS))
    cfg.model.neck.update(neck)
    cfg.model.positional_encoding.offset = -0.5
    return MODELS.build(cfg.model)


@pytest.fixture(scope='module')
def detr():
    return mmdet_model('detr/detr_r50_8xb2-150e_coco.py', SMALL)


@pytest.fixture(scope='module')
def deformable():
    return mmdet_model('deformable_detr/deformable-detr_r50_16xb2-50e_coco.py', LEVELS)


def started(result, model):
    """A model with what was carried over, and the weights that it had before."""
    model.eval()
    before = {key: x.clone() for key, x in model.state_dict().items()}
    missing, unexpected = model.load_state_dict(result.state_dict, strict=False)
    assert not unexpected and set(missing) <= set(result.fresh)
    assert sorted([*result.state_dict, *result.fresh]) == sorted(before)
    return model, before


def is_classifier(name):
    return name.startswith('bbox_head.fc_cls.')


def batch():
    """Two images, one of them padded, whose sizes every stride divides."""
    sizes = [(128, 192), (64, 128)]
    images = torch.randn(2, 3, 128, 192, generator=torch.Generator().manual_seed(1))
    samples = [
        DetDataSample(metainfo=dict(img_shape=size, batch_input_shape=(128, 192))) for size in sizes
    ]
    return images, samples


def decode(model, images, samples):
    """Encoded cells and the decoder layers' outputs."""
    with torch.no_grad():
        encoder_inputs, decoder_inputs = model.pre_transformer(model.extract_feat(images), samples)
        encoded = model.forward_encoder(**encoder_inputs)
        queries, _ = model.pre_decoder(**encoded)
        decoder_inputs.update(queries)
        memory = encoded['memory']
        memory = memory if isinstance(memory, torch.Tensor) else memory.tokens
        return memory, model.forward_decoder(**decoder_inputs)['hidden_states']


def switch_priors_off(model):
    """Give every Gaussian an infinite extent: co-attention is then DETR's attention."""
    for layer in model.decoder.layers:
        nn.init.zeros_(layer.spatial_prior.scales.weight)
        nn.init.zeros_(layer.spatial_prior.scales.bias)


def test_detr_is_what_smca_starts_as(detr):
    """Encoder, and without priors the decoder too, compute what DETR's do."""
    source = detr.state_dict()
    result = warm_start(source, build_detector(SMCA, SMALL).state_dict())
    model, before = started(result, build_detector(SMCA, SMALL))
    memory, _ = decode(model, *batch())
    switch_priors_off(model)
    _, hidden_states = decode(model, *batch())
    expected_memory, expected_states = decode(detr, *batch())
    torch.testing.assert_close(memory, expected_memory, rtol=0, atol=1e-5)
    torch.testing.assert_close(hidden_states, expected_states, rtol=0, atol=1e-5)
    assert expected_memory.std() > 0.5 and expected_states.std() > 0.5

    assert result.source == 'DETR'
    own = re.compile(r'decoder\.(center_head|layers\.\d\.spatial_prior)\.|bbox_head\.fc_')
    assert set(result.fresh) == {name for name in before if own.match(name)}
    for name in result.fresh:
        if 'spatial_prior.scales' not in name:
            assert torch.equal(model.state_dict()[name], before[name]), name


def test_multi_scale_starts_from_models_of_one_scale(detr):
    options = {
        **SMALL,
        'neck': dict(in_channels=[256, 512]),
        'encoder': dict(SMALL['encoder'], layer_kinds=['intra', 'multi']),
    }
    model = build_detector(MULTI_SCALE, options).state_dict()
    smca = perturbed(build_detector(SMCA, SMALL))
    for source in (detr.state_dict(), smca.state_dict()):
        result = warm_start(source, model)
        # Models of one scale project only the last map of the backbone.
        projection = source['neck.convs.0.conv.weight']
        assert torch.equal(result.state_dict['neck.convs.1.conv.weight'], projection)
        own = (
            'neck.convs.0.',
            'neck.extra_convs.0.',
            'level_embed',
            'decoder.layers.0.cross_attn.s',
        )
        assert all(name in result.fresh for name in model if name.startswith(own))
        assert 'decoder.layers.0.cross_attn.attn.in_proj_weight' in result.state_dict
        assert 'encoder.layers.1.self_attn.attn.in_proj_weight' in result.state_dict
    assert all(map(is_classifier, warm_start(model, model).fresh))


def test_hybrid_starts_from_deformable_detr(deformable):
    source = deformable.state_dict()
    result = warm_start(source, build_hybrid(**NORMS).state_dict())
    model, before = started(result, build_hybrid(**NORMS))
    images, samples = batch()
    with torch.no_grad():
        inputs, _ = model.pre_transformer(model.extract_feat(images), samples)
        memory = model.forward_encoder(**inputs)['memory'].tokens
        inputs, _ = deformable.pre_transformer(deformable.extract_feat(images), samples)
        expected = deformable.forward_encoder(**inputs)['memory']
    torch.testing.assert_close(memory, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.5

    own = r'decoder\.(center_head|post_norm|layers\.\d\.(spatial_prior|cross_attn))\.'
    assert set(result.fresh) == {name for name in before if re.match(own, name)}
    query_pos = source['query_embedding.weight'][:, :256]
    assert torch.equal(model.query_embedding.weight, query_pos)
    hidden = torch.randn(3, 256)
    with torch.no_grad():
        regressed = model.bbox_head.fc_reg(
            model.bbox_head.activate(model.bbox_head.reg_ffn(hidden))
        )
        torch.testing.assert_close(regressed, deformable.bbox_head.reg_branches[0](hidden))
        scored = model.bbox_head.fc_cls(hidden)
        torch.testing.assert_close(scored, deformable.bbox_head.cls_branches[0](hidden))


def test_neck_without_norms_starts_fresh(deformable):
    result = warm_start(deformable.state_dict(), build_hybrid().state_dict())
    for part in ('neck.convs.1', 'neck.extra_convs.0'):
        assert f'{part}.conv.weight' in result.fresh


# What the original code calls the parts of MMDetection's models, by hand.
ORIGINAL_NAMES = {
    r'backbone\.': 'backbone.0.body.',
    r'level_embed': 'transformer.level_embed',
    r'query_embedding\.': 'query_embed.',
    r'reference_points_fc\.': 'transformer.reference_points.',
    r'(..coder.*)ffn\.layers\.0\.0\.': r'transformer.\1linear1.',
    r'(..coder.*)ffn\.layers\.1\.': r'transformer.\1linear2.',
    r'encoder\.(.*)norms\.0\.': r'transformer.encoder.\1norm1.',
    r'encoder\.(.*)norms\.1\.': r'transformer.encoder.\1norm2.',
    r'decoder\.(.*)norms\.2\.': r'transformer.decoder.\1norm3.',
    r'decoder\.(.*)self_attn\.attn\.': r'transformer.decoder.\1self_attn.',
}
DETR_NAMES = {
    **ORIGINAL_NAMES,
    r'neck\.convs\.0\.conv\.': 'input_proj.',
    r'encoder\.(.*)self_attn\.attn\.': r'transformer.encoder.\1self_attn.',
    r'decoder\.(.*)norms\.0\.': r'transformer.decoder.\1norm1.',
    r'decoder\.(.*)norms\.1\.': r'transformer.decoder.\1norm2.',
    r'decoder\.(.*)cross_attn\.attn\.': r'transformer.decoder.\1multihead_attn.',
    r'decoder\.post_norm\.': 'transformer.decoder.norm.',
    r'bbox_head\.fc_cls\.': 'class_embed.',
    r'bbox_head\.reg_ffn\.layers\.(\d)\.(0\.)?': r'bbox_embed.layers.\1.',
    r'bbox_head\.fc_reg\.': 'bbox_embed.layers.2.',
}
DEFORMABLE_NAMES = {
    **ORIGINAL_NAMES,
    r'neck\.convs\.(\d)\.conv\.': r'input_proj.\1.0.',
    r'neck\.convs\.(\d)\.gn\.': r'input_proj.\1.1.',
    r'neck\.extra_convs\.0\.conv\.': 'input_proj.3.0.',
    r'neck\.extra_convs\.0\.gn\.': 'input_proj.3.1.',
    r'encoder\.(.*)self_attn\.': r'transformer.encoder.\1self_attn.',
    r'decoder\.(.*)norms\.0\.': r'transformer.decoder.\1norm2.',
    r'decoder\.(.*)norms\.1\.': r'transformer.decoder.\1norm1.',
    r'decoder\.(.*)cross_attn\.': r'transformer.decoder.\1cross_attn.',
    r'bbox_head\.cls_branches\.(\d)\.': r'class_embed.\1.',
    r'bbox_head\.reg_branches\.(\d)\.0\.': r'bbox_embed.\1.layers.0.',
    r'bbox_head\.reg_branches\.(\d)\.2\.': r'bbox_embed.\1.layers.1.',
    r'bbox_head\.reg_branches\.(\d)\.4\.': r'bbox_embed.\1.layers.2.',
}


def original(model, names):
    """State dict under the original code's names; its frozen norms do not count batches."""
    source = {}
    for name, tensor in model.state_dict().items():
        (pattern,) = (pattern for pattern in names if re.match(pattern, name))
        if not name.endswith('num_batches_tracked'):
            source[re.sub(pattern, names[pattern], name, count=1)] = tensor
    return source


def assert_same_start(result, expected):
    """Except for the classifier and for what the original does not count."""
    names = {name for name in expected.state_dict if not name.endswith('num_batches_tracked')}
    assert result.state_dict.keys() == names
    for name in filter(lambda name: not is_classifier(name), names):
        assert torch.equal(result.state_dict[name], expected.state_dict[name]), name


def test_original_detr(detr):
    model = build_detector(SMCA, SMALL).state_dict()
    result = warm_start(original(detr, DETR_NAMES), model)
    assert_same_start(result, warm_start(detr.state_dict(), model))
    assert 'decoder.layers.1.norms.1.weight' in result.state_dict


def test_original_deformable_detr(deformable):
    source = original(deformable, DEFORMABLE_NAMES)
    # Its classifier has a row a category id.
    for n in range(2):
        source[f'class_embed.{n}.weight'] = torch.arange(91.0)[:, None].expand(91, 256)
        source[f'class_embed.{n}.bias'] = torch.arange(91.0)
    model = build_hybrid(**NORMS).state_dict()
    result = warm_start(source, model)
    assert_same_start(result, warm_start(deformable.state_dict(), model))
    # Ids of person, stop sign and toothbrush.
    assert result.state_dict['bbox_head.fc_cls.bias'][[0, 11, 79]].tolist() == [1, 13, 90]
    # Its convolutions have a bias beside their norm, which has a place if the config says so.
    for n in range(4):
        source[f'input_proj.{n}.0.bias'] = torch.randn(256)
    assert 'neck.extra_convs.0.gn.bias' in warm_start(source, model).fresh
    bias = warm_start(source, build_hybrid(**NORMS, bias=True).state_dict())
    name = 'neck.extra_convs.0.conv.bias'
    assert torch.equal(bias.state_dict[name], source['input_proj.3.0.bias'])


def test_what_does_not_fit_starts_fresh(detr, deformable):
    """Parts are carried over whole: no half a backbone, layer or head."""
    refined = {**deformable.state_dict(), 'bbox_head.reg_branches.1.4.bias': torch.ones(4)}
    result = warm_start(refined, build_hybrid(**NORMS).state_dict())
    assert not any(name.startswith('bbox_head.') for name in result.state_dict)

    source = detr.state_dict()
    deeper = {
        **SMALL,
        'num_queries': 9,
        'backbone': dict(depth=34),
        'decoder': dict(SMALL['decoder'], num_layers=1),
    }
    source['encoder.layers.1.ffn.layers.1.bias'] = torch.zeros(3)
    result = warm_start(source, build_detector(SMCA, deeper).state_dict())
    loaded = result.state_dict
    assert not any(name.startswith(('backbone.', 'encoder.layers.1.')) for name in loaded)
    assert any(name.startswith('encoder.layers.0.') for name in loaded)
    assert {'backbone.conv1.weight', 'query_embedding.weight'} <= set(result.fresh)
    assert not any(name.startswith('decoder.layers.1.') for name in loaded)


def test_other_models_are_refused(detr):
    model = build_detector(SMCA, SMALL).state_dict()
    nothing = {'decoder.layers.0.cross_attn.attn.in_proj_weight': torch.zeros(3)}
    for source, words in (
        (detr.backbone.state_dict(), 'not one of the models to start from: SMCA, DETR, Deformable'),
        (nothing, 'nothing in this DETR fits'),
    ):
        with pytest.raises(CheckpointError, match=words):
            warm_start(source, model)


@pytest.mark.parametrize('authors', [False, True])
def test_smca_of_other_classes(authors):
    """All is carried over but the classifier, whatever its rows; both names are known."""
    ours = perturbed(build_detector(SMCA, SMALL)).state_dict()
    rows = {k: torch.zeros(92, *x.shape[1:]) for k, x in ours.items() if is_classifier(k)}
    source = convert_to_reference({**ours, **rows}) if authors else ours
    few = build_detector(SMCA, {**SMALL, 'bbox_head': dict(num_classes=3)}).state_dict()
    for model in (few, ours):
        result = warm_start(source, model)
        assert result.source == 'SMCA'
        assert result.fresh == ['bbox_head.fc_cls.weight', 'bbox_head.fc_cls.bias']
        for name, tensor in result.state_dict.items():
            assert torch.equal(tensor, ours[name]), name


def test_command(detr, tmp_path):
    cfg = load_config(SMCA)
    cfg.merge_from_dict(dict(model=SMALL))
    config = tmp_path / 'small.py'
    cfg.dump(config)
    source, started_from = tmp_path / 'detr.pth', tmp_path / 'start.pth'
    # As MMEngine writes it, the classes included.
    meta = dict(dataset_meta=dict(classes=('a',)))
    torch.save(dict(state_dict=detr.state_dict(), meta=meta), source)
    done = convert(source, started_from, '--warm-start', config)
    lines = done.stdout.splitlines()
    assert {'loaded  backbone.conv1.weight', 'fresh   bbox_head.fc_cls.weight'} <= set(lines)
    assert 'tensors loaded from this DETR, ' in lines[-1]

    model = build_detector(SMCA, SMALL)
    load_checkpoint(model, str(started_from), map_location='cpu')  # As with load_from.
    assert torch.equal(model.query_embedding.weight, detr.query_embedding.weight)

    for config, words in (
        ('nowhere.py', 'nowhere.py cannot be built'),
        (MMDET_CONFIGS / 'detr' / 'detr_r50_8xb2-150e_coco.py', 'is not an SMCA'),
    ):
        refused = convert(source, tmp_path / 'never.pth', '--warm-start', config)
        assert refused.returncode == 2 and words in refused.stderr
    assert not (tmp_path / 'never.pth').exists()


def test_documented_commands(tmp_path, monkeypatch):
    """The commands that the page says are run here, on full-sized models of random weights."""
    page = (ROOT / 'docs' / 'checkpoints.md').read_text()
    mine = '<!-- run by tests/checkpoints/test_warm_start.py -->'
    blocks = re.findall(mine + r'\n```(\w+)\n(.*?)```', page, re.DOTALL)
    (tmp_path / 'configs').symlink_to(ROOT / 'configs')
    monkeypatch.chdir(tmp_path)
    authors = {k: torch.from_numpy(x) for k, x in golden.load(AUTHORS).state_dict().items()}
    checkpoint_files.write(authors, 'authors.pth', key='model')
    for path, name in {
        'detr_r50.pth': 'detr/detr_r50_8xb2-150e_coco.py',
        'deformable_detr_r50.pth': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    }.items():
        checkpoint_files.write(mmdet_model(name, {}).state_dict(), path)
    said = ''
    for language, block in blocks:
        if language == 'python':
            Path('hybrid.py').write_text(block)
            continue
        for command in block.strip().splitlines():
            assert command.startswith('python tools/convert_checkpoint.py ')
            done = convert(*command.split()[2:])
            assert done.returncode == 0, done.stderr
            said += done.stdout
    assert_equal_to_the_bit(checkpoint_files.read_tensors('again.pth'), authors)
    # The page quotes these numbers.
    for source, loaded, fresh in (('DETR', 506, 47), ('Deformable DETR', 520, 80)):
        counted = f'{loaded} tensors loaded from this {source}, {fresh} start fresh'
        assert counted in said
        assert f'{loaded}' in page and f'{loaded + fresh} tensors' in page
