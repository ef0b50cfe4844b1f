"""What the attention benchmarks time is the same attention, whatever computes it."""

import pytest
import torch

from mmsmca.analysis import attention_cost
from mmsmca.analysis.attention_cases import IMPLEMENTATIONS, Setting, case_of

LEVEL = Setting(((4, 6),), queries=3, images=2, heads=2, channels=16, padding=0.25, threads=1)
JOINT = Setting(((8, 12), (4, 6)), queries=3, images=2, heads=2, channels=16, padding=0.25)


@pytest.mark.parametrize(
    'grids, padding', [(g.grids, p) for g in (LEVEL, JOINT) for p in (0, 0.25)]
)
def test_implementations_agree(grids, padding):
    """FlexAttention, uncompiled, too; without prior it is another attention."""
    setting = Setting(
        grids, 3, heads=2, channels=16, padding=padding, threads=1, backend='eager'
    )  # fmt: skip
    outputs = {}
    for name in IMPLEMENTATIONS:
        torch.manual_seed(0)
        with torch.no_grad():  # FlexAttention on a CPU has no backward pass.
            outputs[name] = case_of(name, setting)._run()
    for name in ('folded', 'flex'):
        torch.testing.assert_close(outputs[name], outputs['explicit'], rtol=1e-4, atol=1e-5)
    assert (outputs['no_prior'] - outputs['explicit']).abs().max() > 0.01


def test_rows_of_levels_together():
    rows = attention_cost.measure(JOINT, ('explicit', 'folded', 'no_prior'), 2, 8)
    assert [row['grid'] for row in rows] == ['8x12 + 4x6'] * 3
    assert [row['kernel'] for row in rows] == [None, *['flash_attention_for_cpu'] * 2]
    for row in rows:
        assert row['outcome'] == 'measured'
        assert row['forward_backward_ms'] > 0 and row['forward_ms'] > 0
    assert rows[2]['time_vs_no_prior'] == rows[0]['memory_vs_explicit'] == 1
