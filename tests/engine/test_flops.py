"""MMEngine's counter sees fused attention."""

import torch
import torch.nn.functional as F
from mmengine.analysis import FlopAnalyzer
from torch import nn
from utils import build_detector


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


def test_folding_costs_eight_channels_of_co_attention():
    totals = {}
    for implementation in ('explicit', 'folded'):
        cross_attn_cfg = dict(implementation=implementation)
        decoder = build_detector(
            'small/smca_r18w16_1xb8-11e_shapes128.py',
            dict(decoder=dict(layer_cfg=dict(cross_attn_cfg=cross_attn_cfg))),
        ).decoder
        shape = (1, 10, 128)
        args = (torch.zeros(shape), torch.randn(shape), *2 * [torch.randn(1, 35, 128)], None)
        inputs = (*args, [(5, 7)], torch.tensor([[112.0, 80.0]]))
        totals[implementation] = FlopAnalyzer(decoder, inputs).total()
    layers, heads, queries, cells = 3, 8, 10, 35
    # The prior's five channels, rounded up to a multiple of eight, in both products; what is
    # elementwise does not count.
    folding = layers * heads * queries * cells * 2 * 8
    assert totals['folded'] - totals['explicit'] == folding
