"""Several feature levels: encoders, scale selection, padding, one level as a special case."""

import math

import pytest
import torch
from mmdet.models.detectors import DeformableDETR
from mmdet.models.layers import DeformableDetrTransformerEncoder
from mmdet.registry import MODELS
from torch import nn
from utils import FEW_QUERIES, batch, build_detector, load_config, randomise, sample

from mmsmca.models.layers.attention import folded_attention, level_grids
from mmsmca.models.layers.memory import Memory

MULTI_SCALE = 'smca/smca-multi-scale_r50_8xb1-50e_coco.py'
CONV = 'smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py'
DEFORMABLE = 'smca/smca-deformable-encoder_r50_8xb1-50e_coco.py'

CHANNELS, HEADS = 16, 4
# Three levels of a padded image of 96 x 160 pixels.
STRIDES = [16, 32, 64]
LEVELS = [(6, 10), (3, 5), (2, 3)]
SIZES = [height * width for height, width in LEVELS]
SELECTIONS = ['learned', 'uniform']
ENCODERS = {
    'intra': dict(type='SMCAEncoder', num_layers=2),
    'multi': dict(type='SMCAEncoder', num_layers=2, layer_kinds=['multi', 'multi']),
    'unshared': dict(
        type='SMCAEncoder', num_layers=2, num_levels=3, share_attention=False, share_ffn=False
    ),
    'conv': dict(type='SMCAConvEncoder', num_layers=2, num_levels=3),
    'deformable': dict(type='SMCADeformableEncoder', num_layers=2, num_levels=3),
}


def build_encoder(kind='intra', **options):
    attention = dict(embed_dims=CHANNELS, num_heads=HEADS, dropout=0.0)
    ffn = dict(embed_dims=CHANNELS, feedforward_channels=32)
    layer_cfg = dict(self_attn_cfg=attention, ffn_cfg=ffn)
    torch.manual_seed(0)
    return randomise(MODELS.build(dict(ENCODERS[kind], layer_cfg=layer_cfg, **options)))


def build_decoder(scale_selection='learned', implementation='folded'):
    attention = dict(embed_dims=CHANNELS, num_heads=HEADS)
    layer_cfg = dict(
        self_attn_cfg=attention,
        cross_attn_cfg=dict(
            attention, scale_selection=scale_selection, implementation=implementation
        ),
        ffn_cfg=dict(embed_dims=CHANNELS, feedforward_channels=32),
        spatial_prior_cfg=dict(beta=[256 / stride for stride in STRIDES]),
    )
    cfg = dict(type='SMCADecoder', num_layers=2, strides=STRIDES, layer_cfg=layer_cfg)
    torch.manual_seed(0)
    return randomise(MODELS.build(cfg))


def cells(*shape, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, CHANNELS, generator=generator, dtype=dtype)


def padding_mask(heights_and_widths, levels=LEVELS):
    """Mask of one image with the content sizes of its levels, in cells."""
    masks = []
    for (height, width), (h, w) in zip(levels, heights_and_widths, strict=True):
        mask = torch.ones(1, height, width, dtype=torch.bool)
        mask[:, :h, :w] = False
        masks.append(mask.flatten(1))
    return torch.cat(masks, dim=1)


# The second image is 64 x 112 pixels large.
MASK = torch.cat((padding_mask(LEVELS), padding_mask([(4, 7), (2, 4), (1, 2)])))
# The first image has nothing on its second level, the second image nothing on its third.
GAPS = torch.cat((padding_mask([(6, 10), (0, 0), (2, 3)]), padding_mask([(4, 7), (2, 4), (0, 0)])))


def decode(decoder, memory, mask, levels=LEVELS):
    """Hidden states for random queries and two images of 96 x 160 and 64 x 112 pixels."""
    dtype = memory.dtype
    return decoder(
        torch.zeros(2, 7, CHANNELS, dtype=dtype),
        cells(2, 7, seed=2, dtype=dtype),
        Memory(memory, cells(2, memory.size(1), seed=3, dtype=dtype), mask, levels),
        torch.tensor([[160.0, 96.0], [112.0, 64.0]], dtype=dtype),
    )[0]


# Layers ------------------------------------------------------------------------------------------


def encode(encoder, levels=LEVELS, start=0, stop=None, mask=MASK):
    """Encode some of the random cells of two images, in float64."""
    feat, pos = [cells(2, sum(SIZES), seed=i, dtype=torch.float64) for i in range(2)]
    part = slice(start, stop)
    with torch.no_grad():
        return encoder.double()(Memory(feat[:, part], pos[:, part], mask[:, part], levels)).tokens


def test_intra_scale_is_a_single_level_encoder_on_each_level():
    together = encode(build_encoder('intra'))
    start = 0
    for shape, size in zip(LEVELS, SIZES, strict=True):
        alone = encode(build_encoder('intra'), [shape], start, start + size)
        torch.testing.assert_close(together[:, start : start + size], alone)
        start += size


def test_multi_scale_is_a_single_level_encoder_on_the_concatenation():
    together = encode(build_encoder('multi'))
    assert torch.equal(together, encode(build_encoder('intra'), [(1, sum(SIZES))]))
    assert not torch.allclose(together, encode(build_encoder('intra')))


@pytest.mark.parametrize('unshared', ['attention', 'ffn'])
def test_unshared_weights_are_each_levels_own(unshared):
    share = {f'share_{part}': part != unshared for part in ('attention', 'ffn')}
    encoder = build_encoder('intra', num_levels=3, **share)
    together = encode(encoder)
    own = {'attention': 'self_attn', 'ffn': 'ffn'}[unshared]
    start = 0
    for level, (shape, size) in enumerate(zip(LEVELS, SIZES, strict=True)):
        alone = build_encoder('intra')
        state = encoder.state_dict()
        alone.load_state_dict(
            {
                name: state[name.replace(f'{own}.', f'{own}.{level}.', 1)]
                for name in alone.state_dict()
            }
        )
        expected = encode(alone, [shape], start, start + size)
        torch.testing.assert_close(together[:, start : start + size], expected)
        start += size


def test_only_intra_scale_layers_have_unshared_weights():
    encoder = build_encoder('unshared', layer_kinds=['intra', 'multi'])
    intra, multi = encoder.layers
    assert len(intra.self_attn) == len(intra.ffn) == 3
    assert not isinstance(multi.self_attn, nn.ModuleList)
    assert not isinstance(multi.ffn, nn.ModuleList)


def test_deformable_encoder_is_mmdetections():
    ours = build_encoder('deformable').double()
    layer_cfg = dict(
        self_attn_cfg=dict(embed_dims=CHANNELS, num_heads=HEADS, num_levels=3, dropout=0.0),
        ffn_cfg=dict(embed_dims=CHANNELS, feedforward_channels=32),
    )
    theirs = DeformableDetrTransformerEncoder(num_layers=2, layer_cfg=layer_cfg).double()
    theirs.load_state_dict(ours.state_dict())
    masks = [
        mask.unflatten(1, shape)
        for mask, shape in zip(MASK.split(SIZES, dim=1), LEVELS, strict=True)
    ]
    ratios = [DeformableDETR.get_valid_ratio(mask) for mask in masks]
    feat, pos = [cells(2, sum(SIZES), seed=i, dtype=torch.float64) for i in range(2)]
    with torch.no_grad():
        expected = theirs(
            query=feat,
            query_pos=pos,
            key_padding_mask=MASK,
            spatial_shapes=torch.tensor(LEVELS),
            level_start_index=torch.tensor([0, 60, 75]),
            valid_ratios=torch.stack(ratios, dim=1),
        )
    torch.testing.assert_close(encode(ours), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('mask', [None, MASK], ids=['no padding', 'padding'])
@pytest.mark.parametrize('kind', ['intra', 'multi'])
def test_encoder_keeps_no_attention_weights_for_the_backward_pass(kind, mask):
    """Without dropout; with it, PyTorch's attention on a CPU keeps them."""
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        build_encoder(kind)(Memory(cells(2, sum(SIZES)), cells(2, sum(SIZES)), mask, LEVELS))
    # The largest are the FFN's.
    assert max(x.numel() for x in saved) == 2 * sum(SIZES) * 32


# Scale selection ---------------------------------------------------------------------------------


def test_uniform_is_learned_with_zero_weights():
    learned, uniform = build_decoder('learned'), build_decoder('uniform')
    for layer in learned.layers:
        nn.init.zeros_(layer.cross_attn.scale_selection.weight)
        nn.init.zeros_(layer.cross_attn.scale_selection.bias)
    state = learned.state_dict()
    uniform.load_state_dict({name: state[name] for name in uniform.state_dict()})
    memory = cells(2, sum(SIZES))
    torch.testing.assert_close(decode(uniform, memory, MASK), decode(learned, memory, MASK))


@pytest.mark.parametrize('selection', SELECTIONS)
def test_scale_selection_by_hand(selection):
    """Softmaxes written down query by query and head by head."""
    (layer, _) = build_decoder(selection).double().layers
    queries, dtype = 3, torch.float64
    query, query_pos = [cells(2, queries, seed=i, dtype=dtype) for i in range(2)]
    memory, memory_pos = [cells(2, sum(SIZES), seed=i, dtype=dtype) for i in (2, 3)]
    centers = torch.rand(2, queries, 2, dtype=dtype)
    image_sizes = torch.tensor([[160.0, 96.0], [112.0, 64.0]], dtype=dtype)
    attention, prior = layer.cross_attn, layer.spatial_prior
    with torch.no_grad():
        u = prior.features(query, query_pos)
        priors, levels = prior(u, centers, image_sizes), level_grids(LEVELS, MASK, query)
        actual = attention(query, query_pos, memory + memory_pos, memory, priors, levels, u)
        # Linear(u) is level-major: level, head, axis.
        offsets = prior.offsets(u).view(2, queries, 3, HEADS, 2)
        scales = prior.scales(u).view(2, queries, 3, HEADS, 2)
        w_q, w_k, w_v = attention.attn.in_proj_weight.chunk(3)
        b_q, b_k, b_v = attention.attn.in_proj_bias.chunk(3)
        expected = torch.zeros(2, queries, CHANNELS, dtype=dtype)
        d = CHANNELS // HEADS
        for image, q, head in torch.cartesian_prod(*map(torch.arange, (2, queries, HEADS))):
            rows = slice(head * d, (head + 1) * d)
            q_head = (w_q @ (query + query_pos)[image, q] + b_q)[rows]
            keys = ((memory + memory_pos)[image] @ w_k.T + b_k)[:, rows]
            values = (memory[image] @ w_v.T + b_v)[:, rows]
            logits, start = [], 0
            for level, (height, width) in enumerate(LEVELS):
                center = centers[image, q] * image_sizes[image] / STRIDES[level]
                x, y = center + offsets[image, q, level, head]
                s_x, s_y = scales[image, q, level, head]
                for row in range(height):
                    for column in range(width):
                        cell = start + row * width + column
                        distance = (s_x * (column - x)) ** 2 + (s_y * (row - y)) ** 2
                        log_g = -distance / 8 * STRIDES[level] / 32
                        logit = keys[cell] @ q_head / math.sqrt(d) + log_g
                        logits.append(-math.inf if MASK[image, cell] else logit)
                start += height * width
            logits = torch.tensor(logits, dtype=dtype)
            alpha = torch.full((3,), 1 / 3, dtype=dtype)
            if selection == 'learned':
                alpha = attention.scale_selection(u[image, q]).softmax(0)
            levels = zip(alpha, logits.split(SIZES), strict=True)
            weights = torch.cat([a * level.softmax(0) for a, level in levels])
            expected[image, q, rows] = weights @ values
        expected = query + attention.attn.out_proj(expected)
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize('selection', SELECTIONS)
@pytest.mark.parametrize('kind', ['intra', 'multi'])
def test_one_level_is_single_scale_to_the_last_bit(kind, selection):
    """The multi-scale config with nothing but its C5, against the single-scale one."""
    ffn = dict(feedforward_channels=1024)
    single = build_detector(
        'smca/smca_r50_8xb2-50e_coco.py',
        dict(
            FEW_QUERIES,
            encoder=dict(num_layers=2, layer_cfg=dict(ffn_cfg=ffn)),
            decoder=dict(num_layers=2, layer_cfg=dict(ffn_cfg=ffn)),
        ),
    ).eval()
    multi = build_detector(
        MULTI_SCALE,
        dict(
            FEW_QUERIES,
            strides=[32],
            backbone=dict(out_indices=(3,)),
            neck=dict(in_channels=[2048], num_outs=1),
            encoder=dict(num_layers=2, layer_kinds=[kind, kind], share_attention=False),
            decoder=dict(
                num_layers=2,
                layer_cfg=dict(
                    cross_attn_cfg=dict(scale_selection=selection),
                    spatial_prior_cfg=dict(beta=[8.0]),
                ),
            ),
        ),
    ).eval()
    multi.load_state_dict(single.state_dict())
    _, samples = batch((96, 128), (64, 160))
    maps = (torch.randn(2, 256, 3, 5),)
    with torch.no_grad():
        expected = single.forward_transformer(maps, samples)
        actual = multi.forward_transformer(maps, samples)
    assert torch.equal(actual['hidden_states'], expected['hidden_states'])
    assert torch.equal(actual['references'], expected['references'])


# Padding -----------------------------------------------------------------------------------------


def test_conv_encoder_under_autocast_resizes_at_the_same_places():
    """What resizes padded maps works on coordinates that bfloat16 does not hold."""
    encoder = build_encoder('conv')
    levels = [(2, 400), (1, 200), (1, 100)]
    feat, pos = cells(1, 1100), cells(1, 1100, seed=1)
    padding = padding_mask([(2, 397), (1, 199), (1, 100)], levels)
    with torch.no_grad():
        expected = encoder(Memory(feat, pos, padding, levels)).tokens
        with torch.autocast('cpu', torch.bfloat16):
            actual = encoder(Memory(feat, pos, padding, levels)).tokens
    error = (actual - expected).norm() / expected.norm()
    assert error < 0.02


def with_other_padding(feat):
    return torch.where(GAPS[..., None], 10 * cells(2, sum(SIZES), seed=9), feat).detach()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('kind', ENCODERS)
def test_empty_level_in_the_encoder(kind, dtype):
    """It changes nothing on the others, and leaves no NaN, whatever stands in its cells."""
    encoder = build_encoder(kind)
    feat, pos = cells(2, sum(SIZES)).requires_grad_(), cells(2, sum(SIZES), seed=1)
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        memory, _, mask, _ = encoder(Memory(feat, pos, GAPS, LEVELS))
        other = encoder(Memory(with_other_padding(feat), pos, GAPS, LEVELS)).tokens
    assert torch.isfinite(memory).all()
    assert torch.equal(memory[~mask], other[~mask])
    memory[~mask].float().square().sum().backward()
    assert (feat.grad[GAPS] == 0).all()
    assert (feat.grad[~GAPS] != 0).any()
    for name, parameter in encoder.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ('selection', 'implementation'),
    [
        ('learned', 'folded'),
        ('learned', 'explicit'),
        ('uniform', 'folded'),
        ('uniform', 'explicit'),
    ],
)
def test_empty_level_in_the_decoder(selection, implementation, dtype):
    decoder = build_decoder(selection, implementation)
    memory = cells(2, sum(SIZES)).requires_grad_()
    with torch.autocast('cpu', dtype, enabled=dtype != torch.float32):
        hidden_states = decode(decoder, memory, GAPS)
        other = decode(decoder, with_other_padding(memory), GAPS)
    assert torch.isfinite(hidden_states).all()
    assert torch.equal(hidden_states, other)
    hidden_states.float().square().sum().backward()
    assert (memory.grad[GAPS] == 0).all()
    assert (memory.grad[~GAPS] != 0).any()
    for name, parameter in decoder.named_parameters():
        assert torch.isfinite(parameter.grad).all(), name


@pytest.mark.parametrize('selection', ['learned', 'uniform'])
def test_empty_level_gives_zeros(selection):
    """Its share of the output is zero: as if its values were."""
    (layer, _) = build_decoder(selection).double().layers
    query = cells(2, 3, dtype=torch.float64)
    memory = cells(2, sum(SIZES), seed=2, dtype=torch.float64)
    u = layer.spatial_prior.features(query, query)
    image_sizes = torch.tensor([[160.0, 96.0], [112.0, 64.0]], dtype=torch.float64)
    priors = layer.spatial_prior(u, torch.full((2, 3, 2), 0.5, dtype=torch.float64), image_sizes)
    attention = layer.cross_attn.attn
    k, v = [x.split(SIZES, dim=2) for x in (attention.key(memory), attention.value(memory))]
    parts = zip(k, v, priors, level_grids(LEVELS, GAPS, query), strict=True)
    levels = [folded_attention(attention.query(query), *part) for part in parts]
    assert (levels[1][0] == 0).all() and (levels[2][1] == 0).all()
    assert (levels[0] != 0).all()


# Detector ----------------------------------------------------------------------------------------


def test_image_size_keeps_its_precision_under_autocast():
    """bfloat16 maps do not round where the centres are."""
    model = build_detector(MULTI_SCALE, FEW_QUERIES)
    size = (40, 1333)
    maps = [
        torch.zeros(1, 256, math.ceil(40 / s), math.ceil(1333 / s), dtype=torch.bfloat16)
        for s in STRIDES
    ]
    encoder_inputs, decoder_inputs = model.pre_transformer(tuple(maps), [sample(size, size)])
    assert decoder_inputs['image_sizes'].tolist() == [[1333.0, 40.0]]
    assert encoder_inputs['memory'].pos.dtype == torch.float32


def test_sampling_points_start_as_in_deformable_detr():
    model = build_detector(DEFORMABLE, FEW_QUERIES)
    model.init_weights()
    for layer in model.encoder.layers:
        assert (layer.self_attn.sampling_offsets.weight == 0).all()
        # The first head's points lie one to four cells to the right.
        points = layer.self_attn.sampling_offsets.bias.view(8, 4, 4, 2)[0]
        expected = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0], [4.0, 0.0]])
        torch.testing.assert_close(points, expected.expand(4, 4, 2))


def test_deformable_encoder_is_trained_as_deformable_detr_trains_it():
    cfg = load_config(DEFORMABLE).optim_wrapper.paramwise_cfg.custom_keys
    assert cfg['sampling_offsets'].lr_mult == 0.1
    assert cfg['backbone'].lr_mult == 0.1


@pytest.mark.slow
@pytest.mark.parametrize('part', ['intra', 'multi', 'unshared', 'conv', *SELECTIONS])
def test_compiles_without_graph_breaks(part):
    """Not the deformable encoder: MMDetection's reads the levels' shapes from a tensor."""
    if part in ENCODERS:
        module, feat, pos = build_encoder(part), cells(2, sum(SIZES)), cells(2, sum(SIZES), seed=1)

        def forward(module):
            return module(Memory(feat, pos, MASK, LEVELS)).tokens
    else:
        module, memory = build_decoder(part), cells(2, sum(SIZES))

        def forward(module):
            return decode(module, memory, MASK)

    def gradients(module):
        module.zero_grad()
        forward(module).square().sum().backward()
        return [p.grad.clone() for p in module.parameters()]

    expected = gradients(module)
    compiled = gradients(torch.compile(module, fullgraph=True, backend='aot_eager'))
    torch.testing.assert_close(compiled, expected, rtol=1e-4, atol=1e-4)
