"""MMEngine's counter sees fused attention."""

import torch
import torch.nn.functional as F
from mmengine.analysis import FlopAnalyzer
from torch import nn
from utils import build_detector

from mmsmca.models.layers.memory import Memory


class Attention(nn.Module):
    def forward(self, query, key, value):
        return F.scaled_dot_product_attention(query, key, value)


class Model(nn.Module):
    """The counter sees operators of submodules."""

    def __init__(self):
        super().__init__()
        self.attention = Attention()

    def forward(self, *args):
        return self.attention(*args)


def test_counts_both_products():
    query, key = torch.randn(2, 3, 7, 4), torch.randn(2, 3, 11, 4)
    counter = FlopAnalyzer(Model(), (query, key, key))
    assert counter.total() == 2 * (2 * 3 * 7 * 11 * 4)


class OneLevel(nn.Module):
    """A decoder, of tensors alone, as the counter takes them."""

    def __init__(self, decoder):
        super().__init__()
        self.decoder = decoder

    def forward(self, query, query_pos, cells, pos):
        memory = Memory(cells, pos, None, [(5, 7)])
        return self.decoder(query, query_pos, memory, torch.tensor([[112.0, 80.0]]))


def test_folding_costs_eight_channels_of_co_attention():
    totals = {}
    for implementation in ('explicit', 'folded'):
        cross_attn_cfg = dict(implementation=implementation)
        decoder = build_detector(
            'small/smca_r18w16_1xb8-11e_shapes128.py',
            dict(decoder=dict(layer_cfg=dict(cross_attn_cfg=cross_attn_cfg))),
        ).decoder
        inputs = [torch.randn(1, number, 128) for number in (10, 10, 35, 35)]
        totals[implementation] = FlopAnalyzer(OneLevel(decoder), tuple(inputs)).total()
    layers, heads, queries, cells = 3, 8, 10, 35
    # The prior's five channels, rounded up to a multiple of eight, in both products; what is
    # elementwise does not count.
    folding = layers * heads * queries * cells * 2 * 8
    assert totals['folded'] - totals['explicit'] == folding
