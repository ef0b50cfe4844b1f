"""Measure time and memory of Gaussian-modulated attention, per implementation and without prior.

Example: python tools/analysis_tools/benchmark_attention.py --grids 25x42 50x84 --json rows.json
For SMCA-DINO's attention: --joint --grids 100x167 50x84 25x42 13x21
"""

import math
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import benchmarks
import matplotlib.pyplot as plt
import torch
from cases import MODES, Setting
from co_attention import CoAttention
from measure import measure

from mmsmca.denormals import flush_denormals
from mmsmca.errors import command
from mmsmca.files import write_json
from mmsmca.visualization.panels import save_figure

ATTENTIONS = ('explicit', 'folded', 'no_prior')
REFERENCES = ('explicit', 'no_prior')
COLUMNS = {
    'grid': 'keys',
    'queries': 'queries',
    'name': 'implementation',
    'test_ms': 'forward, ms',
    'train_ms': 'forward + backward, ms',
    'train_mib': 'extra memory, MiB',
    'train_time_vs_explicit': 'time vs explicit',
    'train_time_vs_no_prior': 'time vs no prior',
    'train_memory_vs_explicit': 'memory vs explicit',
    'train_memory_vs_no_prior': 'memory vs no prior',
}


def measure_attention(
    attention: CoAttention,
    setting: Setting,
    rounds: int,
    memory_limit: float | None = None,
    implementations: Sequence[str] = ATTENTIONS,
) -> list[dict]:
    """Measure implementations of a co-attention in turns, as rows of :func:`measure`."""
    subjects = {name: replace(attention, implementation=name) for name in implementations}
    modes = list(MODES) if rounds else ['train']
    rows = measure(subjects, setting, rounds, memory_limit, modes, REFERENCES)
    grid = ' + '.join(f'{height}x{width}' for height, width in attention.grids)
    return [dict(row, grid=grid, queries=attention.queries) for row in rows]


def plot(rows: list[dict], path: Path) -> None:
    """Plot memory over the grids, one line per implementation and number of queries.

    Args:
        rows: Measured rows.
        path: Picture to write; a copy with the suffix .svg is written beside it.
    """
    labels = dict(explicit='prior in memory', folded='prior folded in', no_prior='no prior')
    grids = {math.prod(grid_size(row['grid'])): row['grid'] for row in rows}
    figure, axes = plt.subplots(figsize=(7, 4.5), layout='constrained')
    numbers = sorted({row['queries'] for row in rows})
    for i, name in enumerate(ATTENTIONS):
        for j, queries in enumerate(numbers):
            lines = [r for r in rows if (r['name'], r['queries']) == (name, queries)]
            axes.plot(
                list(grids),
                [math.nan if r.get('train_mib') is None else r['train_mib'] for r in lines],
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
    """Parse HxW from the command line."""
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
        help="SMCA-DINO's co-attention over the cells of all maps together, in one row",
    )  # fmt: skip
    parser.add_argument('--images', type=int, default=2, help='images B')
    parser.add_argument(
        '--queries', type=int, nargs='+', default=[300], help='number Q of queries per image'
    )
    parser.add_argument('--heads', type=int, default=8, help='heads M')
    parser.add_argument('--channels', type=int, default=32, help='channels d per head')
    parser.add_argument('--padding', type=float, default=0.1, help='padded share of the last image')
    parser.add_argument('--dropout', type=float, default=0.0, help='dropout of attention weights')
    parser.add_argument('--plot', type=Path, help='picture of the memory, .png; an .svg beside it')
    return parser.parse_args()


@command
def main() -> int:
    """Measure, print, write."""
    args = parse_args()
    flush_denormals()
    torch.set_num_threads(args.threads)
    settings = benchmarks.settings(args, 'grids', 'queries', 'plot')
    setting = Setting(args.images, args.dtype, args.device, args.threads)
    rows = []
    for grids in [tuple(args.grids)] if args.joint else [(grid,) for grid in args.grids]:
        for queries in args.queries:
            attention = CoAttention(
                'folded', grids, queries, args.heads, args.channels, args.padding, args.dropout
            )
            measured = measure_attention(attention, setting, args.rounds, args.memory_limit)
            rows += [{**settings, **row} for row in measured]
    denormals = 'flushed to zero' if settings['denormals_flushed'] else 'computed with'
    print(f'{settings["hardware"]}, {args.threads} threads, denormal numbers {denormals}\n')
    print(benchmarks.markdown_table(rows, COLUMNS))
    if args.json:
        write_json(args.json, rows)
    if args.plot:
        plot(rows, args.plot)
    failures = benchmarks.failures(rows)
    for failure in failures:
        print(failure, file=sys.stderr)
    return 1 if failures else 0


if __name__ == '__main__':
    sys.exit(main())
