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
from mmsmca.models.layers.memory import LevelCells, Memory

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
    return model, before


def assert_accounts(result, source, model):
    """Every tensor of both models is in the report once, and fresh ones were left alone."""
    taken = [origin.split(' ')[0] for origin in result.loaded.values()]
    assert sorted([*taken, *result.unused]) == sorted(source)
    assert sorted([*result.loaded, *result.fresh]) == sorted(model)
    assert result.state_dict.keys() == result.loaded.keys()
    assert all(result.fresh.values()) and all(result.unused.values())


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
        memory = memory if isinstance(memory, torch.Tensor) else memory.cells
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
    assert_accounts(result, source, before)
    memory, _ = decode(model, *batch())
    switch_priors_off(model)
    _, hidden_states = decode(model, *batch())
    expected_memory, expected_states = decode(detr, *batch())
    torch.testing.assert_close(memory, expected_memory, rtol=0, atol=1e-5)
    torch.testing.assert_close(hidden_states, expected_states, rtol=0, atol=1e-5)
    assert expected_memory.std() > 0.5 and expected_states.std() > 0.5

    assert result.source == 'DETR of MMDetection'
    own = re.compile(r'decoder\.(center_head|layers\.\d\.spatial_prior)\.|bbox_head\.fc_')
    assert set(result.fresh) == {name for name in before if own.match(name)}
    assert set(result.unused) == {
        f'bbox_head.fc_{kind}.{leaf}' for kind in ('cls', 'reg') for leaf in ('weight', 'bias')
    }
    assert 'softmax' in result.fresh['bbox_head.fc_cls.weight']
    assert 'relative to' in result.fresh['bbox_head.fc_reg.bias']
    for name in result.fresh:
        if 'spatial_prior.scales' not in name:
            assert torch.equal(model.state_dict()[name], before[name]), name


def original_detr(detr):
    """State dict of the original: PyTorch's transformer layers, from which DETR's were copied."""
    torch.manual_seed(0)
    size = dict(d_model=256, nhead=8, dim_feedforward=64, batch_first=True)
    encoder = [perturbed(nn.TransformerEncoderLayer(**size)) for _ in range(2)]
    decoder = [perturbed(nn.TransformerDecoderLayer(**size)) for _ in range(2)]
    modules = {
        'transformer.decoder.norm': nn.LayerNorm(256),
        'query_embed': nn.Embedding(7, 256),
        'input_proj': nn.Conv2d(512, 256, 1),
        'class_embed': nn.Linear(256, 92),
        'bbox_embed.layers.0': nn.Linear(256, 256),
        'bbox_embed.layers.1': nn.Linear(256, 256),
        'bbox_embed.layers.2': nn.Linear(256, 4),
        'backbone.0.body': detr.backbone,
        **{f'transformer.encoder.layers.{n}': layer for n, layer in enumerate(encoder)},
        **{f'transformer.decoder.layers.{n}': layer for n, layer in enumerate(decoder)},
    }
    source = {
        f'{prefix}.{name}': tensor
        for prefix, module in modules.items()
        for name, tensor in module.state_dict().items()
        if not name.endswith('num_batches_tracked')
    }
    return source, encoder, decoder


def test_original_detr(detr):
    source, encoder, decoder = original_detr(detr)
    result = warm_start(source, build_detector(SMCA, SMALL).state_dict())
    model, before = started(result, build_detector(SMCA, SMALL))
    switch_priors_off(model)
    assert result.source == 'DETR of facebookresearch'
    assert_accounts(result, source, before)
    cells, queries = torch.randn(2, 12, 256), torch.randn(2, 7, 256)
    zeros, no_pos = torch.zeros_like(cells), torch.zeros_like(queries)
    level = LevelCells((3, 4))
    sizes = torch.tensor([[128.0, 96.0]] * 2)
    with torch.no_grad():
        memory = model.encoder(Memory(cells, zeros, None, [(3, 4)])).cells
        for layer in encoder:
            cells = layer(cells)
        torch.testing.assert_close(memory, cells, rtol=0, atol=1e-5)
        for ours, theirs in zip(model.decoder.layers, decoder, strict=True):
            centers = torch.rand(2, 7, 2)
            actual = ours(queries, no_pos, memory, memory, [level], centers, sizes)
            queries = theirs(queries, memory)
            torch.testing.assert_close(actual, queries, rtol=0, atol=1e-5)
        image = torch.randn(1, 3, 64, 64)
        features = nn.functional.conv2d(
            detr.backbone(image)[0], source['input_proj.weight'], source['input_proj.bias']
        )
        torch.testing.assert_close(model.extract_feat(image)[0], features, rtol=0, atol=1e-5)
    assert result.loaded['query_embedding.weight'] == 'query_embed.weight'
    counters = {name for name in before if name.endswith('num_batches_tracked')}
    assert {result.fresh[name] for name in counters} == {'a counter, not stored there'}
    assert 'softmax' in result.unused['class_embed.weight']


def test_multi_scale_starts_from_detr(detr):
    options = {
        **SMALL,
        'neck': dict(in_channels=[256, 512]),
        'encoder': dict(SMALL['encoder'], layer_kinds=['intra', 'multi']),
    }
    model = build_detector(MULTI_SCALE, options).state_dict()
    result = warm_start(detr.state_dict(), model)
    assert_accounts(result, detr.state_dict(), model)
    # The last map of the backbone is the only one that DETR projects.
    assert result.loaded['neck.convs.1.conv.weight'] == 'neck.convs.0.conv.weight'
    for name in ('neck.convs.0.conv.bias', 'neck.extra_convs.0.conv.bias', 'level_embed'):
        assert result.fresh[name] == 'not in the source'
    assert 'decoder.layers.0.cross_attn.scale_selection.bias' in result.fresh
    assert 'decoder.layers.0.cross_attn.attn.in_proj_weight' in result.loaded
    assert 'encoder.layers.1.self_attn.attn.in_proj_weight' in result.loaded


def test_hybrid_starts_from_deformable_detr(deformable):
    source = deformable.state_dict()
    result = warm_start(source, build_hybrid(**NORMS).state_dict())
    model, before = started(result, build_hybrid(**NORMS))
    assert_accounts(result, source, before)
    images, samples = batch()
    with torch.no_grad():
        inputs, _ = model.pre_transformer(model.extract_feat(images), samples)
        memory = model.forward_encoder(**inputs)['memory'].cells
        inputs, _ = deformable.pre_transformer(deformable.extract_feat(images), samples)
        expected = deformable.forward_encoder(**inputs)['memory']
    torch.testing.assert_close(memory, expected, rtol=0, atol=1e-5)
    assert expected.std() > 0.5

    own = r'decoder\.(center_head|post_norm|layers\.\d\.(spatial_prior|cross_attn))\.'
    assert set(result.fresh) == {name for name in before if re.match(own, name)}
    query_pos = source['query_embedding.weight'][:, :256]
    assert torch.equal(model.query_embedding.weight, query_pos)
    assert result.loaded['query_embedding.weight'].endswith('(first half, the position)')
    assert result.loaded['bbox_head.fc_reg.weight'] == 'bbox_head.reg_branches.0.4.weight'
    assert 'shared' in result.unused['bbox_head.reg_branches.1.4.weight']
    assert 'reference_points_fc.weight' in result.unused
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
        reason = result.fresh[f'{part}.conv.weight']
        assert reason.startswith(f'{part} is built differently') and reason.endswith('only here')
        assert result.unused[f'{part}.gn.weight'] == reason


# What Deformable DETR's own code calls the parts of MMDetection's, by hand.
ORIGINAL_NAMES = {
    r'backbone\.': 'backbone.0.body.',
    r'neck\.convs\.(\d)\.conv\.': r'input_proj.\1.0.',
    r'neck\.convs\.(\d)\.gn\.': r'input_proj.\1.1.',
    r'neck\.extra_convs\.0\.conv\.': 'input_proj.3.0.',
    r'neck\.extra_convs\.0\.gn\.': 'input_proj.3.1.',
    r'level_embed': 'transformer.level_embed',
    r'query_embedding\.': 'query_embed.',
    r'reference_points_fc\.': 'transformer.reference_points.',
    r'encoder\.(.*)ffn\.layers\.0\.0\.': r'transformer.encoder.\1linear1.',
    r'encoder\.(.*)ffn\.layers\.1\.': r'transformer.encoder.\1linear2.',
    r'encoder\.(.*)norms\.0\.': r'transformer.encoder.\1norm1.',
    r'encoder\.(.*)norms\.1\.': r'transformer.encoder.\1norm2.',
    r'encoder\.(.*)self_attn\.': r'transformer.encoder.\1self_attn.',
    r'decoder\.(.*)ffn\.layers\.0\.0\.': r'transformer.decoder.\1linear1.',
    r'decoder\.(.*)ffn\.layers\.1\.': r'transformer.decoder.\1linear2.',
    r'decoder\.(.*)norms\.0\.': r'transformer.decoder.\1norm2.',
    r'decoder\.(.*)norms\.1\.': r'transformer.decoder.\1norm1.',
    r'decoder\.(.*)norms\.2\.': r'transformer.decoder.\1norm3.',
    r'decoder\.(.*)self_attn\.attn\.': r'transformer.decoder.\1self_attn.',
    r'decoder\.(.*)cross_attn\.': r'transformer.decoder.\1cross_attn.',
    r'bbox_head\.cls_branches\.(\d)\.': r'class_embed.\1.',
    r'bbox_head\.reg_branches\.(\d)\.0\.': r'bbox_embed.\1.layers.0.',
    r'bbox_head\.reg_branches\.(\d)\.2\.': r'bbox_embed.\1.layers.1.',
    r'bbox_head\.reg_branches\.(\d)\.4\.': r'bbox_embed.\1.layers.2.',
}


def original_deformable(deformable):
    source = {}
    for name, tensor in deformable.state_dict().items():
        found = [(p, new) for p, new in ORIGINAL_NAMES.items() if re.match(p, name)]
        assert len(found) == 1, name
        source[re.sub(found[0][0], found[0][1], name, count=1)] = tensor
    # Its convolutions have a bias beside their norm, its classifier a row a category id.
    for n in range(4):
        source[f'input_proj.{n}.0.bias'] = torch.randn(256)
    for n in range(2):
        source[f'class_embed.{n}.weight'] = torch.arange(91.0)[:, None].expand(91, 256)
        source[f'class_embed.{n}.bias'] = torch.arange(91.0)
    return source


def test_original_deformable_detr(deformable):
    source = original_deformable(deformable)
    model = build_hybrid(**NORMS, bias=True).state_dict()
    result = warm_start(source, model)
    assert result.source == 'Deformable DETR of fundamentalvision'
    assert_accounts(result, source, model)
    expected = warm_start(deformable.state_dict(), build_hybrid(**NORMS).state_dict())
    extra = {f'neck.convs.{n}.conv.bias' for n in range(3)} | {'neck.extra_convs.0.conv.bias'}
    assert result.state_dict.keys() == expected.state_dict.keys() | extra
    for name, tensor in expected.state_dict.items():
        if not name.startswith('bbox_head.fc_cls'):
            assert torch.equal(result.state_dict[name], tensor), name
    # Ids of person, stop sign and toothbrush.
    assert result.state_dict['bbox_head.fc_cls.bias'][[0, 11, 79]].tolist() == [1, 13, 90]
    assert 'COCO' in result.loaded['bbox_head.fc_cls.weight']
    assert torch.equal(
        result.state_dict['neck.extra_convs.0.conv.bias'], source['input_proj.3.0.bias']
    )


def test_refined_heads_start_fresh(deformable):
    source = deformable.state_dict()
    source['bbox_head.reg_branches.1.4.bias'] = torch.ones(4)
    model = build_hybrid(**NORMS).state_dict()
    result = warm_start(source, model)
    assert_accounts(result, source, model)
    heads = [name for name in model if name.startswith('bbox_head.')]
    assert heads and {result.fresh[name] for name in heads} == {
        result.unused['bbox_head.cls_branches.1.bias']
    }
    assert 'its own head there' in result.fresh[heads[0]]


def test_what_does_not_fit_is_told(detr):
    """Parts are carried over whole: no half a backbone or layer."""
    source = detr.state_dict()
    deeper = {
        **SMALL,
        'num_queries': 9,
        'backbone': dict(depth=34),
        'decoder': dict(SMALL['decoder'], num_layers=1),
    }
    model = build_detector(SMCA, deeper).state_dict()
    source['encoder.layers.1.ffn.layers.1.bias'] = torch.zeros(3)
    result = warm_start(source, model)
    assert_accounts(result, source, model)
    assert not any(name.startswith(('backbone.', 'encoder.layers.1.')) for name in result.loaded)
    assert any(name.startswith('encoder.layers.0.') for name in result.loaded)
    assert 'backbone is built differently' in result.fresh['backbone.conv1.weight']
    assert 'has shape (3,) there, (256,) here' in result.fresh['encoder.layers.1.norms.0.weight']
    assert '(7, 256) there, (9, 256) here' in result.fresh['query_embedding.weight']
    assert result.unused['decoder.layers.1.norms.0.weight'] == 'not in this SMCA'


def test_other_models_are_refused(detr):
    model = build_detector(SMCA, SMALL).state_dict()
    for source, words in (
        (
            detr.backbone.state_dict(),
            'not one of the models to start from: SMCA, SMCA of the authors',
        ),
        (
            {
                'decoder.layers.0.cross_attn.attn.in_proj_weight': torch.zeros(3),
                'bbox_head.fc_reg.weight': torch.zeros(3),
            },
            'nothing in this DETR of MMDetection fits',
        ),
    ):
        with pytest.raises(CheckpointError, match=words):
            warm_start(source, model)


@pytest.mark.parametrize('authors', [False, True])
def test_smca_of_other_classes(authors):
    """All is carried over but the classifier, whatever its rows; both names are known."""
    ours = perturbed(build_detector(SMCA, SMALL)).state_dict()
    source = convert_to_reference({**ours, **ninety_two_rows(ours)}) if authors else ours
    few = build_detector(SMCA, {**SMALL, 'bbox_head': dict(num_classes=3)}).state_dict()
    for model in (few, ours):
        result = warm_start(source, model)
        assert result.source == ('SMCA of the authors' if authors else 'SMCA')
        assert set(result.fresh) == {'bbox_head.fc_cls.weight', 'bbox_head.fc_cls.bias'}
        assert set(result.fresh.values()) == {'the classifier starts fresh, for other classes'}
        for name, tensor in result.state_dict.items():
            assert torch.equal(tensor, ours[name]), name


def ninety_two_rows(state_dict):
    names = ('bbox_head.fc_cls.weight', 'bbox_head.fc_cls.bias')
    return {name: torch.zeros(92, *state_dict[name].shape[1:]) for name in names}


def test_smca_of_one_scale_starts_one_of_several():
    one = perturbed(build_detector(SMCA, SMALL)).state_dict()
    kinds = dict(SMALL, neck=dict(in_channels=[256, 512]))
    kinds['encoder'] = {**SMALL['encoder'], 'layer_kinds': ['intra', 'multi']}
    several = build_detector(MULTI_SCALE, kinds).state_dict()
    last = max(name for name in several if name.startswith('neck.convs.'))
    assert warm_start(one, several).loaded[last] == last.replace(last.split('.')[2], '0', 1)
    assert warm_start(several, several).loaded.keys() == several.keys() - {
        'bbox_head.fc_cls.weight',
        'bbox_head.fc_cls.bias',
    }


def test_command(detr, tmp_path):
    cfg = load_config(SMCA)
    cfg.merge_from_dict(dict(model=SMALL))
    config = tmp_path / 'small.py'
    cfg.dump(config)
    source, started_from = tmp_path / 'detr.pth', tmp_path / 'start.pth'
    # As MMEngine writes it, the classes included.
    torch.save(
        dict(state_dict=detr.state_dict(), meta=dict(dataset_meta=dict(classes=('a',)))), source
    )
    done = convert(source, started_from, '--warm-start', config)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert 'loaded  backbone.conv1.weight -> backbone.conv1.weight' in lines
    assert 'fresh   decoder.center_head.layers.0.weight: not in the source' in lines
    assert any(line.startswith('unused  bbox_head.fc_cls.weight: ') for line in lines)
    assert 'DETR of MMDetection: ' in lines[-1] and 'tensors loaded' in lines[-1]

    # load_from goes this way.
    model = build_detector(SMCA, SMALL)
    load_checkpoint(model, str(started_from), map_location='cpu')
    for part in ('backbone', 'neck', 'encoder', 'query_embedding'):
        for name, tensor in getattr(detr, part).state_dict().items():
            assert torch.equal(getattr(model, part).state_dict()[name], tensor), name

    for config, words in (
        ('nowhere.py', 'nowhere.py cannot be built'),
        (MMDET_CONFIGS / 'detr' / 'detr_r50_8xb2-150e_coco.py', 'is not an SMCA'),
    ):
        refused = convert(source, tmp_path / 'never.pth', '--warm-start', config)
        assert refused.returncode == 2 and words in refused.stderr
        assert 'Traceback' not in refused.stderr
    assert not (tmp_path / 'never.pth').exists()
    assert checkpoint_files.read_tensors(started_from).keys() <= model.state_dict().keys()


def test_documented_commands(tmp_path, monkeypatch):
    """Every command of the page, on full-sized models of random weights."""
    page = (ROOT / 'docs' / 'checkpoints.md').read_text()
    blocks = re.findall(r'```(\w+)\n(.*?)```', page, re.DOTALL)
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
    for source, loaded, fresh in ((' DETR', 506, 47), ('Deformable DETR', 520, 80)):
        counted = f'{source} of MMDetection: {loaded} tensors loaded, {fresh} start fresh'
        assert counted in said
        assert f'{loaded}' in page and f'{loaded + fresh} tensors' in page
