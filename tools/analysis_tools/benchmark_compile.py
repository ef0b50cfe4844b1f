"""What torch.compile gives SMCA and SMCA-DINO: all parts of the detector, and each by itself.

Example: python tools/benchmark_compile.py --json compile.json

A row is written as soon as it is measured; the same command goes on after the last.
"""

import argparse
import sys
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import torch

from mmsmca.analysis import benchmarks, compile_cost
from mmsmca.analysis.detector_cost import MODES, Setting
from mmsmca.analysis.parts import Part, measure_parts
from mmsmca.denormals import flush_denormals
from mmsmca.engine.hooks.compile_hook import PARTS
from mmsmca.errors import command

CONFIGS = [
    'configs/smca/smca_r50_8xb2-50e_coco.py',
    'configs/smca_dino/smca-dino_r50_8xb2-12e_coco.py',
]


def parse_args() -> argparse.Namespace:
    parser = benchmarks.argument_parser(__doc__.splitlines()[0], rounds=5)
    benchmarks.add_torch_arguments(parser)
    parser.add_argument('configs', nargs='*', metavar='CONFIG', default=CONFIGS)
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(800, 1333), metavar=('H', 'W'),
        help='size of the image, in pixels',
    )  # fmt: skip
    parser.add_argument('--backend', default='inductor', help='of torch.compile')
    parser.set_defaults(json='work_dirs/compile.json')
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error('--rounds has to be at least 1')
    for name in args.configs:
        if not Path(name).is_file():
            parser.error(f'config {name} does not exist')
    return args


@command
def main() -> int:
    """Measure what is missing, print, write."""
    args = parse_args()
    flush_denormals()
    torch.set_num_threads(args.threads)
    setting = Setting(
        shape=tuple(args.shape), dtype=args.dtype, device=args.device, threads=args.threads
    )
    parts = []
    for name in args.configs:
        for mode in MODES:
            for of in (PARTS, *((part,) for part in PARTS)):
                arguments = (name, setting, args.rounds, args.backend, (mode,), of)
                title = f'{Path(name).stem}, {MODES[mode]}, {" and ".join(of)}'
                parts.append(Part('compile', title, compile_cost.measure, arguments))
    rows = measure_parts(parts, Path(args.json), benchmarks.settings(args, 'configs'))
    print(benchmarks.markdown_table(rows, {'config': 'config', **compile_cost.COLUMNS}))
    failed = benchmarks.failures(rows)
    for outcome in failed:
        print(outcome, file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
