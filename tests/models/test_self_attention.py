"""Self-attention against PyTorch's own module, whose state dict it has."""

import pytest
import torch
from torch import nn

from mmsmca.models.layers import fused_attention as module
from mmsmca.models.layers.fused_attention import fused_attention
from mmsmca.models.layers.self_attention import SelfAttention


@pytest.mark.parametrize('padded', [False, True])
def test_is_torchs_multihead_attention(padded):
    torch.manual_seed(0)
    reference = nn.MultiheadAttention(16, 4, batch_first=True, dtype=torch.float64)
    nn.init.normal_(reference.in_proj_bias)
    ours = SelfAttention(16, 4).double()
    ours.attn.load_state_dict(reference.state_dict(), strict=True)
    query, pos = torch.randn(2, 2, 7, 16, dtype=torch.float64)
    mask = None
    if padded:
        mask = torch.zeros(2, 7, dtype=torch.bool)
        mask[1, 4:] = True
    position = query + pos
    expected = query + reference(position, position, query, key_padding_mask=mask)[0]
    torch.testing.assert_close(ours(query, pos, mask), expected, rtol=0, atol=1e-12)


def test_padding_alone_is_finite():
    """Where all is padding the result is not read, but it must not spoil the gradients."""
    attention = SelfAttention(16, 4)
    query = torch.randn(2, 7, 16, requires_grad=True)
    mask = torch.zeros(2, 7, dtype=torch.bool)
    mask[1] = True
    out = attention(query, torch.zeros(2, 7, 16), mask)
    out.square().sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(query.grad).all()


def test_dropout_only_in_training():
    attention = SelfAttention(16, 4, dropout=0.5)
    query, pos = torch.randn(2, 1, 7, 16)
    assert not torch.equal(attention(query, pos), attention(query, pos))
    attention.eval()
    assert torch.equal(attention(query, pos), attention(query, pos))


@pytest.mark.parametrize('padded', [False, True])
def test_dropout_in_portions(padded, monkeypatch):
    """Dropped are the same share of weights, in the backward pass the very ones of the forward."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    mask = torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = padded

    def attend(*tensors):
        torch.manual_seed(1)
        return fused_attention(*tensors, mask, 0.3, 0.5)

    # Two of five queries at a time.
    monkeypatch.setattr(module, 'MAX_WEIGHTS', 2 * 2 * 2 * 5)
    assert torch.autograd.gradcheck(attend, (q, k, v))
    with torch.no_grad():
        mean = torch.stack([fused_attention(q, k, v, mask, 0.3, 0.5) for _ in range(2000)]).mean(0)
        expected = fused_attention(q, k, v, mask, 0.0, 0.5)
    assert (mean - expected).abs().mean() < 0.02


def test_dropout_drops_every_weight_alike():
    """Four random numbers are cut from one: each has the probability, none knows its neighbours."""
    torch.manual_seed(0)
    q, k = torch.zeros(1, 1, 2000, 1), torch.zeros(1, 1, 400, 1)
    # Without logits, an output is the share of its hundred weights that stayed.
    shares = fused_attention(q, k, torch.eye(4).repeat(100, 1)[None, None], None, 0.1, 1.0)[0, 0]
    assert (shares.mean(0) - 0.25).abs().max() < 0.001
    deviation = 0.25 * (0.1 / 0.9 / 100) ** 0.5
    assert (shares.std(0) / deviation - 1).abs().max() < 0.08
    assert (shares.T.corrcoef() - torch.eye(4)).abs().max() < 0.1


def test_dropout_compiles():
    """In one graph, with its backward pass; in the mean it is what no dropout gives."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 2, 9, 4, requires_grad=True) for _ in range(3))
    compiled = torch.compile(fused_attention, backend='aot_eager', dynamic=True, fullgraph=True)
    compiled(q, k, v, None, 0.5, 0.5).square().sum().backward()
    assert all(x.grad.abs().sum() > 0 for x in (q, k, v))
    with torch.no_grad():
        mean = torch.stack([compiled(q, k, v, None, 0.5, 0.5) for _ in range(1000)]).mean(0)
        assert (mean - fused_attention(q, k, v, None, 0.0, 0.5)).abs().mean() < 0.03
