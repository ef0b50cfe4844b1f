"""Measure attention under Gaussian priors beside plain attention: time, memory, rounding errors.

Example: python tools/analysis_tools/benchmark_attention.py --grids 25x42 50x84 --json rows.json
For SMCA-DINO's attention: --all-levels --grids 100x167 50x84 25x42 13x21
"""

import argparse
import itertools
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any, NamedTuple

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import benchmarks
import torch
from benchmark_model import relative_error
from benchmarks import Case, Setting
from torch import Tensor, nn

from mmsmca.errors import command
from mmsmca.files import write_json
from mmsmca.models.layers.attention import (
    IMPLEMENTATIONS,
    AllLevelsCoAttention,
    CoAttention,
    Gaussians,
    Grid,
    PlainCoAttention,
    common_grid,
    level_grids,
    num_prior_channels,
)
from mmsmca.models.layers.box_prior import BoxPrior

PLAIN = 'plain'
HEADS, CHANNELS = 8, 32  # M, and d per head.
BETA = 8.0
# Strides of SMCA-DINO's levels; with fewer levels, the first ones.
STRIDES = (8, 16, 32, 64)
ERRORS = {
    'output': 'error of the output',
    'query': 'of queries',
    'key': 'keys',
    'value': 'values',
    'centers': 'centres',
    'precisions': 'precisions',
    'gates': 'gates',
}
COLUMNS = {
    'cells': 'keys',
    'size': 'size of priors',
    'queries': 'queries',
    'dtype': 'precision',
    'name': 'implementation',
    **ERRORS,
    **benchmarks.COSTS,
}


class Attention(NamedTuple):
    """A co-attention on random inputs.

    Attributes:
        name: ``plain``, ``explicit`` or ``folded``.
        shapes: Height and width of every feature map, in cells, the finest first. One map gives
            SMCA's attention, several give SMCA-DINO's, with one softmax over all of them.
        queries: Queries Q per image.
        images: Number of images.
        padding: Padded fraction of the last image; 0 means no mask.
        size: Scales of SMCA's priors, or sides of SMCA-DINO's boxes relative to the image. None: as
            in training, about 1, or between 0.02 and 0.6.
    """

    name: str
    shapes: tuple[tuple[int, int], ...]
    queries: int = 300
    images: int = 2
    padding: float = 0.1
    size: float | None = None

    @property
    def num_cells(self) -> int:
        """Number of cells of all maps."""
        return sum(height * width for height, width in self.shapes)

    @property
    def content(self) -> int:
        """Channels per head of queries and keys, without those that SMCA-DINO's prior occupies."""
        if len(self.shapes) == 1:
            return CHANNELS
        return CHANNELS - num_prior_channels(len(self.shapes))

    def prior_and_grid(self) -> tuple[Gaussians, Grid]:
        """Random priors, with centres all over the image, and the cells."""
        (height, width), *others = self.shapes
        if others:
            return self._box_prior_and_grid()
        centers = torch.rand(self.images, HEADS, self.queries, 2) * torch.tensor([width, height])
        scales = torch.randn(centers.shape).mul_(0.25).add_(1)
        if self.size is not None:
            scales = self.size * (0.9 + 0.2 * torch.rand(centers.shape))
        padding = None
        if self.padding:
            padding = torch.zeros(self.images, height, width, dtype=torch.bool)
            padding[-1, :, round(width * (1 - self.padding)) :] = True
            padding = padding.flatten(1)
        (grid,) = level_grids(self.shapes, padding, centers)
        return Gaussians(centers, scales.square() / BETA), grid

    def _box_prior_and_grid(self) -> tuple[Gaussians, Grid]:
        """Priors as at the start of training, for random boxes, and the cells."""
        strides = STRIDES[: len(self.shapes)]
        height, width = (side * strides[0] for side in self.shapes[0])
        image_sizes = torch.tensor([[float(width), float(height)]]).repeat(self.images, 1)
        image_sizes[-1, 0] *= 1 - self.padding
        boxes = torch.rand(self.images, self.queries, 4)
        boxes[..., 2:] = boxes[..., 2:] * 0.58 + 0.02 if self.size is None else self.size
        masks = [
            ((torch.arange(columns) + 0.5) * stride > image_sizes[:, :1]).repeat(1, rows)
            for (rows, columns), stride in zip(self.shapes, strides, strict=True)
        ]
        padding = torch.cat(masks, dim=1) if self.padding else None
        with torch.no_grad():
            place = BoxPrior(HEADS, HEADS, strides)
            prior = place(torch.zeros(self.images, self.queries, HEADS), boxes, image_sizes)
        return prior, common_grid(self.shapes, strides, image_sizes, padding)

    def build(self, setting: Setting) -> Case:
        """Build the decoder's co-attention; a training step computes all gradients."""
        setting.prepare()
        width = HEADS * CHANNELS
        counts = (self.images, self.queries), (self.images, self.num_cells)
        with torch.device(setting.device):
            query, memory, query_pos, memory_pos = (torch.randn(*n, width) for n in counts * 2)
            upstream = torch.randn(*counts[0], width)
            module = self.module(width)
            prior, grid = self.prior_and_grid()
        inputs = [query, query_pos, memory, *(x for x in prior if x is not None)]
        inputs = [*(x.requires_grad_() for x in inputs), *module.parameters()]
        # SMCA's takes one prior and grid per level.
        placed: tuple = (prior, grid)
        if isinstance(module, CoAttention):
            placed = [prior], [grid], query

        def run() -> Tensor:
            with setting.autocast():
                return module(query, query_pos, memory + memory_pos, memory, *placed)

        def train() -> None:
            out = run()
            # Plain attention has no gradient for priors.
            torch.autograd.grad(out, inputs, upstream.to(out.dtype), allow_unused=True)

        return Case(train, torch.no_grad()(run))

    def module(self, width: int) -> nn.Module:
        """The decoder's co-attention, with ``width`` channels."""
        if self.name == PLAIN:
            return PlainCoAttention(width, HEADS)
        if len(self.shapes) == 1:
            return CoAttention(width, HEADS, implementation=self.name)
        return AllLevelsCoAttention(width, HEADS, len(self.shapes), implementation=self.name)

    def compute(self, setting: Setting) -> dict[str, Tensor]:
        """Output and gradient of every input by name; the random inputs depend on sizes alone.

        Queries, keys and values have the precision of the setting, the prior float32 at least, as
        under autocast.
        """
        setting.prepare()
        dtype = setting.amp or setting.weights
        with torch.device(setting.device):
            prior, grid = self.prior_and_grid()
            sizes = dict(
                query=(self.queries, self.content),
                key=(self.num_cells, self.content),
                value=(self.num_cells, CHANNELS),
                upstream=(self.queries, CHANNELS),
            )
            inputs = {k: torch.randn(self.images, HEADS, *size) for k, size in sizes.items()}
        # Numbers that every precision holds.
        inputs = {name: x.bfloat16().half().to(dtype) for name, x in inputs.items()}
        upstream = inputs.pop('upstream')
        wide = torch.promote_types(dtype, torch.float32)
        inputs |= {name: x.to(wide) for name, x in prior._asdict().items() if x is not None}
        for x in inputs.values():
            x.requires_grad_()
        q, k, v, *tensors = inputs.values()
        out = IMPLEMENTATIONS[self.name](q, k, v, Gaussians(*tensors), grid)
        gradients = torch.autograd.grad(out, list(inputs.values()), upstream)
        return dict(zip(('output', *inputs), (out.detach(), *gradients), strict=True))

    def errors(self, setting: Setting) -> dict[str, float]:
        """Relative errors against ``explicit`` in float64, with one image and 24 queries."""
        small = self._replace(images=1, queries=min(self.queries, 24))
        found = small.compute(setting)
        exact = Setting('float64', setting.device, setting.threads)
        expected = small._replace(name='explicit').compute(exact)
        return {name: relative_error([found[name]], [x]) for name, x in expected.items()}


def measure_attention(attention: Attention, setting: Setting, rounds: int) -> Iterator[dict]:
    """Measure the implementations in turns with plain attention; yield a row each."""
    cases = {name: attention._replace(name=name) for name in (PLAIN, *IMPLEMENTATIONS)}
    rows = [dict[str, Any](name=name) for name in IMPLEMENTATIONS]
    if rounds:
        builds = {name: partial(case.build, setting) for name, case in cases.items()}
        rows = benchmarks.measure(builds, setting, rounds, memory_of_build=False)
    for row in rows:
        with benchmarks.error_in(row):
            if row['name'] != PLAIN:
                row.update(cases[row['name']].errors(setting))
        cells = ' + '.join(f'{height}x{width}' for height, width in attention.shapes)
        yield dict(
            cells=cells, queries=attention.queries, size=attention.size, dtype=setting.dtype, **row
        )


def grid_size(text: str) -> tuple[int, int]:
    """Parse HxW from the command line."""
    height, width = text.split('x')
    return int(height), int(width)


def parse_args() -> argparse.Namespace:
    parser = benchmarks.argument_parser(__doc__.splitlines()[0], rounds=7)
    benchmarks.add_torch_arguments(parser)
    parser.add_argument(
        '--grids', type=grid_size, nargs='+', default=[(25, 42), (50, 84)], metavar='HxW',
        help='feature maps, in cells',
    )  # fmt: skip
    parser.add_argument(
        '--all-levels', action='store_true', help='one softmax over all maps, as in SMCA-DINO'
    )
    parser.add_argument('--images', type=int, default=2, help='images B')
    parser.add_argument('--queries', type=int, nargs='+', default=[300], help='queries per image')
    parser.add_argument('--padding', type=float, default=0.1, help='padded share of the last image')
    parser.add_argument(
        '--size', type=float, nargs='+', default=[None],
        help='scales of the priors, or sides of the boxes in parts of the image; as in training',
    )  # fmt: skip
    return parser.parse_args()


@command
def main() -> int:
    """Measure, print, write; return 1 after an error."""
    args = parse_args()
    result: dict = dict(settings=benchmarks.settings(args), rows=[])
    maps = [tuple(args.grids)] if args.all_levels else [(grid,) for grid in args.grids]
    for shapes, size, queries, dtype in itertools.product(
        maps, args.size, args.queries, args.dtype
    ):
        attention = Attention('folded', shapes, queries, args.images, args.padding, size)
        setting = Setting(dtype, args.device, args.threads)
        for row in measure_attention(attention, setting, args.rounds):
            result['rows'].append(row)
        if args.json:
            write_json(args.json, result)
    print(benchmarks.markdown_table(result['rows'], COLUMNS))
    return int(any('error' in row for row in result['rows']))


if __name__ == '__main__':
    sys.exit(main())
