"""Time and memory of the Gaussian-modulated attention, in every implementation and without prior.

Example: python tools/benchmark_attention.py --grids 25x42 50x84 --json attention.json
"""

import math
import statistics
from argparse import Namespace
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from mmsmca.analysis import benchmarks
from mmsmca.denormals import flush_denormals
from mmsmca.models.layers.attention import IMPLEMENTATIONS
from mmsmca.models.layers.projections import AttentionProjections
from mmsmca.visualization.panels import save_figure

BETA = 8.0
REFERENCES = ('explicit', 'no_prior')
COLUMNS = {
    'grid': 'keys',
    'queries': 'queries',
    'implementation': 'implementation',
    'forward_ms': 'forward, ms',
    'forward_backward_ms': 'forward + backward, ms',
    'extra_mib': 'extra memory, MiB',
    'time_vs_explicit': 'time vs explicit',
    'time_vs_no_prior': 'time vs no prior',
    'memory_vs_explicit': 'memory vs explicit',
    'memory_vs_no_prior': 'memory vs no prior',
}


def no_prior(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    centers: Tensor,
    scales: Tensor,
    grid_size: tuple[int, int],
    beta: float,
    key_padding_mask: Tensor | None = None,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention without prior, called as in the package's self-attention; same arguments."""
    mask = None if key_padding_mask is None else ~key_padding_mask[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)


ATTENTIONS = {**IMPLEMENTATIONS, 'no_prior': no_prior}


class Case:
    """Random inputs of one implementation, and what is measured: a forward and a training pass.

    Args:
        implementation: Key of ``ATTENTIONS``.
        grid: Height and width of the feature map, in cells.
        queries: Queries of an image.
        args: The command line.
    """

    def __init__(
        self, implementation: str, grid: tuple[int, int], queries: int, args: Namespace
    ) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(args.threads)
        self.attend, self.grid = ATTENTIONS[implementation], grid
        self.dtype, self.device = getattr(torch, args.dtype), args.device
        self.dropout = args.dropout
        height, width = grid
        tokens = (args.images, queries), (args.images, height * width)
        channels = args.heads * args.channels
        with torch.device(args.device):
            self.centers = torch.rand(args.images, args.heads, queries, 2)
            self.centers *= torch.tensor([width, height])
            # About 1, as where training starts.
            self.scales = torch.randn(self.centers.shape).mul_(0.25).add_(1)
            self.mask = torch.zeros(args.images, height, width, dtype=torch.bool)
            self.mask[-1, :, round(width * (1 - args.padding)) :] = True
            self.mask = self.mask.flatten(1) if args.padding else None
            self.projections = AttentionProjections(channels, args.heads)
            self.query, self.memory = (torch.randn(*n, channels) for n in tokens)
            self.query_pos, self.memory_pos = (torch.randn(*n, channels) for n in tokens)
            self.upstream = torch.randn(*tokens[0], channels)
        self.inputs = [self.query, self.query_pos, self.memory, self.centers, self.scales]
        self.inputs = [x.requires_grad_() for x in self.inputs]
        self.inputs += self.projections.parameters()

    def _run(self) -> Tensor:
        """Co-attention of one level as a decoder layer has it, without the residual."""
        with torch.autocast(self.device, self.dtype, enabled=self.dtype != torch.float32):
            out = self.attend(
                self.projections.query(self.query + self.query_pos),
                self.projections.key(self.memory + self.memory_pos),
                self.projections.value(self.memory),
                self.centers,
                self.scales,
                self.grid,
                BETA,
                self.mask,
                self.dropout,
            )
            return self.projections.output(out)

    @torch.no_grad()
    def forward(self) -> None:
        """As in inference."""
        self._run()

    def forward_backward(self) -> None:
        """As in training; gradients of everything that has one."""
        out = self._run()
        # Without prior, the centres and the scales have none.
        torch.autograd.grad(out, self.inputs, self.upstream.to(out.dtype), allow_unused=True)


def extra_memory(
    implementation: str, grid: tuple[int, int], queries: int, args: Namespace
) -> float | None:
    """Peak of forward and backward over the inputs, in MiB; None if it exceeds the limit."""
    # The first call also loads code and starts threads: not what is measured.
    Case(implementation, (2, 2), 1, args).forward_backward()
    case = Case(implementation, grid, queries, args)
    return benchmarks.peak_memory(case.forward_backward, args.device, args.memory_limit)


def measure(grid: tuple[int, int], queries: int, args: Namespace) -> list[dict]:
    """Measure every implementation on one grid.

    Args:
        grid: Height and width of the feature map, in cells.
        queries: Queries of an image.
        args: The command line.

    Returns:
        One row an implementation, with its ratios to explicit and to no prior.
    """
    memory = {
        name: benchmarks.in_fresh_process(extra_memory, name, grid, queries, args)
        for name in ATTENTIONS
    }
    cases = {
        name: Case(name, grid, queries, args)
        for name in ATTENTIONS
        if args.rounds and memory[name] is not None
    }
    forward = benchmarks.interleaved_times(
        {name: case.forward for name, case in cases.items()}, args.rounds
    )
    training = benchmarks.interleaved_times(
        {name: case.forward_backward for name, case in cases.items()}, args.rounds
    )
    rows = []
    for name in ATTENTIONS:
        row = dict(implementation=name, grid='x'.join(map(str, grid)), queries=queries)
        row['extra_mib'] = memory[name]
        if name in cases:
            row['forward_ms'] = 1e3 * statistics.median(forward[name])
            row['forward_backward_ms'] = 1e3 * statistics.median(training[name])
        for reference in REFERENCES:
            if memory[name] is not None and memory[reference] is not None:
                row[f'memory_vs_{reference}'] = memory[name] / memory[reference]
            if name in cases and reference in cases:
                row[f'time_vs_{reference}'] = benchmarks.paired_ratio(
                    training[name], training[reference]
                )
        rows.append(row)
    return rows


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
                [math.nan if r['extra_mib'] is None else r['extra_mib'] for r in lines],
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


def main() -> None:
    """Measure, print, write."""
    args = parse_args()
    flush_denormals()
    torch.set_num_threads(args.threads)
    settings = benchmarks.settings(args, 'grids', 'queries', 'plot')
    rows = [
        {**settings, **row}
        for grid in args.grids
        for queries in args.queries
        for row in measure(grid, queries, args)
    ]
    print(f'{benchmarks.setting(settings)}\n\n{benchmarks.markdown_table(rows, COLUMNS)}')
    if args.json:
        benchmarks.write_json(args.json, rows)
    if args.plot:
        plot(rows, args.plot)


if __name__ == '__main__':
    main()
