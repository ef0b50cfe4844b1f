"""Rounding errors of co-attentions against ``explicit`` in float64: output and all gradients.

Queries, keys and values have the precision of the setting, the prior has float32 at least, as under
autocast. Run as a script, it prints the table in docs/performance.md.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import torch
from benchmarks import DTYPES, markdown_table, outcome_in
from cases import Setting
from co_attention import CoAttention
from numerics import relative_error
from torch import Tensor

COLUMNS = {
    'implementation': 'implementation',
    'output': 'output',
    'query': 'queries',
    'key': 'keys',
    'value': 'values',
    'centers': 'centres',
    'precisions': 'precisions',
    'gates': 'gates',
}


def measure(
    attention: CoAttention,
    setting: Setting,
    implementations: Sequence[str] = ('explicit', 'folded'),
) -> list[dict]:
    """Measure the errors of implementations of a co-attention.

    Args:
        attention: The co-attention.
        setting: Device and precision. The batch is one image, to limit the reference's memory.
        implementations: Names of the implementations. Defaults to the package's two.

    Returns:
        A row per implementation: the ``outcome``, and the relative errors (in the Frobenius norm)
        of the output and of the gradient of every input.
    """
    rows = []
    for name in implementations:
        row: dict = dict(implementation=name, queries=attention.queries, dtype=setting.dtype)
        with outcome_in(row):
            found = compute(replace(attention, implementation=name), setting)
            in_float64 = replace(setting, dtype='float64')
            expected = compute(replace(attention, implementation='explicit'), in_float64)
            row.update({k: relative_error([found[k]], [x]) for k, x in expected.items()})
        rows.append(row)
    return rows


def compute(attention: CoAttention, setting: Setting) -> dict[str, Tensor]:
    """Output and gradient of every input by name; the random inputs depend on sizes alone."""
    setting.prepare()
    dtype = {'tf32': torch.float32}.get(setting.dtype) or getattr(torch, setting.dtype)
    wide = torch.promote_types(dtype, torch.float32)
    content = replace(attention, implementation='explicit').content
    with torch.device(setting.device):
        attend, prior = attention.attend(1)
        inputs = {
            name: torch.randn(1, attention.heads, *size).bfloat16().half().to(dtype)
            for name, size in dict(
                query=(attention.queries, content),
                key=(attention.num_cells, content),
                value=(attention.num_cells, attention.channels),
                upstream=(attention.queries, attention.channels),
            ).items()
        }
    upstream = inputs.pop('upstream')
    inputs |= {name: x.to(wide) for name, x in prior.items()}
    for x in inputs.values():
        x.requires_grad_()
    out = attend(*inputs.values())
    gradients = torch.autograd.grad(out, list(inputs.values()), upstream)
    return dict(zip(('output', *inputs), (out.detach(), *gradients), strict=True))


def main() -> None:
    """Print the errors of both implementations, for small and for large priors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--queries', type=int, default=100, help='default: 100')
    parser.add_argument('--dtypes', nargs='+', choices=DTYPES, default=['float32', 'bfloat16'])
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    args = parser.parse_args()
    levels = ((100, 167), (50, 84), (25, 42), (13, 21))
    cases = {
        f'25x42, scales of {scale}': CoAttention('folded', ((25, 42),), args.queries, size=scale)
        for scale in (1, 4)
    }
    cases |= {
        f'50x84, scales of {scale}': CoAttention('folded', ((50, 84),), args.queries, size=scale)
        for scale in (1, 4)
    }
    cases |= {
        f'800x1333, boxes of {side:.0%}': CoAttention('folded', levels, args.queries, size=side)
        for side in (0.01, 0.05, 0.2)
    }
    rows = [
        dict(row, case=name)
        for name, case in cases.items()
        for dtype in args.dtypes
        for row in measure(case, Setting(dtype=dtype, device=args.device))
    ]
    print(markdown_table(rows, {'case': 'keys and priors', 'dtype': 'precision', **COLUMNS}))


if __name__ == '__main__':
    main()
