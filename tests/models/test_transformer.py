"""Encoder and decoder under autocast and activation checkpointing."""

import pytest
import torch
from mmengine.runner import turn_on_activation_checkpointing
from torch import nn
from utils import build_detector

from mmsmca.models.layers.memory import Memory

SHAPE = (5, 7)


@pytest.fixture
def encoder():
    return build('encoder')


@pytest.fixture
def decoder():
    return build('decoder')


def build(part):
    """Encoder or decoder of the shapes config: 128 channels, no dropout; randomised priors."""
    module = getattr(build_detector('small/smca_r18w16_1xb8-11e_shapes128.py'), part)
    torch.manual_seed(0)
    for parameter in module.parameters():
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
    return module.train()


def inputs_of(part):
    """Arguments; what the cells are computed from has a gradient, as behind a neck."""
    torch.manual_seed(1)
    mask = torch.zeros(2, *SHAPE, dtype=torch.bool)
    mask[1, :, 5:] = True
    cells = torch.randn(2, 35, 128, requires_grad=True).tanh()
    memory = Memory(cells, torch.randn(2, 35, 128), mask.flatten(1), [SHAPE])
    if part == 'encoder':
        return (memory,)
    image_sizes = torch.tensor([[112.0, 80.0], [80.0, 80.0]])
    query_pos = torch.randn(2, 10, 128)
    return torch.zeros(2, 10, 128), query_pos, memory, image_sizes


def gradients(module, outputs):
    module.zero_grad()
    # The encoder's memory, or the decoder's hidden states and references.
    outputs = [x for x in outputs if isinstance(x, torch.Tensor) and x.requires_grad]
    sum((x * torch.linspace(-1, 1, x.size(-1))).sum() for x in outputs).backward()
    return {name: p.grad.clone() for name, p in module.named_parameters()}


@pytest.mark.parametrize('part', ['encoder', 'decoder'])
def test_activation_checkpointing_changes_nothing(part, request):
    module = request.getfixturevalue(part)
    expected = gradients(module, module(*inputs_of(part)))
    # MMEngine's switch, `activation_checkpointing = [...]` in a config.
    turn_on_activation_checkpointing(module, [f'layers.{i}' for i in range(len(module.layers))])
    for name, gradient in gradients(module, module(*inputs_of(part))).items():
        torch.testing.assert_close(gradient, expected[name])


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
@pytest.mark.parametrize('part', ['encoder', 'decoder'])
def test_autocast(part, dtype, request):
    module = request.getfixturevalue(part)
    args = inputs_of(part)
    with torch.no_grad():
        expected = module(*args)
        with torch.autocast('cpu', dtype):
            actual = module(*args)
    if part == 'decoder':
        # The centres do not lose precision.
        torch.testing.assert_close(actual[1], expected[1], rtol=1e-6, atol=1e-6)
    actual, expected = actual[0], expected[0]
    assert torch.isfinite(actual).all()
    error = (actual.float() - expected).norm() / expected.norm()
    assert error < 0.03


def test_autocast_trains_the_priors(decoder):
    expected = gradients(decoder, decoder(*inputs_of('decoder')))
    with torch.autocast('cpu', torch.bfloat16):
        outputs = decoder(*inputs_of('decoder'))
    actual = gradients(decoder, outputs)
    for name, gradient in expected.items():
        if '.spatial_prior.' in name or 'center_head' in name:
            cosine = torch.cosine_similarity(actual[name].flatten(), gradient.flatten(), dim=0)
            assert cosine > 0.9, (name, cosine)
