"""Time and memory of the Gaussian-modulated attention, in every implementation and without prior.

Example: python tools/benchmark_attention.py --grids 25x42 50x84 --json attention.json
For SMCA-DINO's: --joint --grids 100x167 50x84 25x42 13x21
"""

import math
import sys
from argparse import Namespace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

from mmsmca.analysis import attention_cost, benchmarks
from mmsmca.analysis.attention_cases import Setting
from mmsmca.denormals import flush_denormals
from mmsmca.visualization.panels import save_figure

ATTENTIONS = ('explicit', 'folded', 'no_prior')
INPUTS = ('images', 'heads', 'channels', 'padding', 'dropout', 'dtype', 'device', 'threads')
COLUMNS = {
    'grid': 'keys',
    'queries': 'queries',
    'implementation': 'implementation',
    **attention_cost.COLUMNS,
}


def plot(rows: list[dict], path: Path) -> None:
    """Draw the memory over the grids, a line an implementation and number of queries.

    Args:
        rows: What was measured.
        path: Picture to write; one with the suffix .svg appears beside it.
    """
    labels = dict(explicit='prior in memory', folded='prior folded in', no_prior='no prior')
    grids = {math.prod(grid_size(row['grid'])): row['grid'] for row in rows}
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    numbers = sorted({row['queries'] for row in rows})
    for i, name in enumerate(ATTENTIONS):
        for j, queries in enumerate(numbers):
            lines = [r for r in rows if (r['implementation'], r['queries']) == (name, queries)]
            axes.plot(
                list(grids),
                [math.nan if r.get('extra_mib') is None else r['extra_mib'] for r in lines],
                f'C{i}o',
                linestyle=('-', '--', ':')[j % 3],
                label=f'{labels.get(name, name)}, {queries} queries',
            )
    axes.set_xscale('log')
    axes.set_yscale('log', base=2)
    axes.yaxis.set_major_formatter(
        lambda mib, _: f'{mib:g} MiB' if mib < 1024 else f'{mib / 1024:g} GiB'
    )
    axes.set_xticks(list(grids), list(grids.values()))
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.set_xlabel('cells of the feature map, H x W')
    axes.set_ylabel('extra peak memory, forward and backward')
    axes.legend(fontsize='small')
    save_figure(figure, path)


def grid_size(text: str) -> tuple[int, int]:
    """Parse a command line's HxW."""
    height, width = text.split('x')
    return int(height), int(width)


def parse_args() -> Namespace:
    parser = benchmarks.argument_parser(__doc__.splitlines()[0], rounds=7)
    benchmarks.add_torch_arguments(parser)
    parser.add_argument(
        '--grids', type=grid_size, nargs='+', default=[(25, 42), (50, 84)], metavar='HxW',
        help='feature maps, in cells',
    )  # fmt: skip
    parser.add_argument(
        '--joint', action='store_true',
        help="SMCA-DINO's co-attention over the cells of all maps together, one row for them",
    )  # fmt: skip
    parser.add_argument('--images', type=int, default=2, help='images B')
    parser.add_argument(
        '--queries', type=int, nargs='+', default=[300], help='queries Q of an image'
    )
    parser.add_argument('--heads', type=int, default=8, help='heads M')
    parser.add_argument('--channels', type=int, default=32, help='channels d of a head')
    parser.add_argument('--padding', type=float, default=0.1, help='padded share of the last image')
    parser.add_argument('--dropout', type=float, default=0.0, help='of attention weights')
    parser.add_argument('--plot', type=Path, help='picture of the memory, .png; an .svg beside it')
    return parser.parse_args()


def main() -> int:
    """Measure, print, write."""
    args = parse_args()
    flush_denormals()
    torch.set_num_threads(args.threads)
    settings = benchmarks.settings(args, 'grids', 'queries', 'plot')
    inputs = {key: getattr(args, key) for key in INPUTS}
    rows = [
        {**settings, **row}
        for grids in ([tuple(args.grids)] if args.joint else [(grid,) for grid in args.grids])
        for queries in args.queries
        for row in attention_cost.measure(
            Setting(grids, queries, **inputs), ATTENTIONS, args.rounds, args.memory_limit
        )
    ]
    print(f'{benchmarks.setting(settings)}\n\n{benchmarks.markdown_table(rows, COLUMNS)}')
    if args.json:
        benchmarks.write_json(args.json, rows)
    if args.plot:
        plot(rows, args.plot)
    failures = benchmarks.failures(rows)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
