"""Benchmark torch.compile on SMCA and SMCA-DINO: all parts of the detector, and each by itself.

Example: python tools/analysis_tools/benchmark_compile.py --json compile.json

Rows are written as soon as they are measured; the same command continues after the last row.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import benchmarks
from benchmarks import Part
from cases import MODES, Detector, Setting
from measure import measure

from mmsmca.denormals import flush_denormals
from mmsmca.engine.hooks.compile_hook import PARTS
from mmsmca.errors import command

CONFIGS = [
    'configs/smca/smca_r50_8xb2-50e_coco.py',
    'configs/smca_dino/smca-dino_r50_8xb2-12e_coco.py',
]
EAGER = 'as it is'
COLUMNS = {'name': 'detector'}
for _mode, _title in MODES.items():
    COLUMNS |= {
        f'{_mode}_ms': f'{_title}, ms',
        f'{_mode}_time_vs_{EAGER}': 'vs as it is',
        f'{_mode}_first_s': 'first call, s',
        f'{_mode}_mib': f'{_title}, MiB',
    }


def measure_compiled(
    detector: Detector, setting: Setting, rounds: int, parts: tuple[str, ...]
) -> list[dict]:
    """Measure a detector as it is and with parts compiled, as rows of :func:`measure`."""
    subjects = {EAGER: detector, 'compiled': replace(detector, compiled=parts)}
    rows = measure(subjects, setting, rounds, references=[EAGER])
    return [dict(row, config=detector.config) for row in rows]


def parse_args() -> argparse.Namespace:
    parser = benchmarks.argument_parser(__doc__.splitlines()[0], rounds=5)
    benchmarks.add_torch_arguments(parser)
    parser.add_argument('configs', nargs='*', metavar='CONFIG', default=CONFIGS)
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(800, 1333), metavar=('H', 'W'),
        help='size of the image, in pixels',
    )  # fmt: skip
    parser.add_argument('--backend', default='inductor', help='backend of torch.compile')
    parser.set_defaults(json='work_dirs/compile.json')
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error('--rounds must be at least 1')
    for name in args.configs:
        if not Path(name).is_file():
            parser.error(f'config {name} does not exist')
    return args


@command
def main() -> int:
    """Measure what is missing, print, write."""
    args = parse_args()
    flush_denormals()
    setting = Setting(1, args.dtype, args.device, args.threads)
    parts = []
    for name in args.configs:
        detector = Detector(name, tuple(args.shape), backend=args.backend)
        for of in (PARTS, *((part,) for part in PARTS)):
            title = f'{Path(name).stem}, {" and ".join(of)}'
            arguments = (detector, setting, args.rounds, of)
            parts.append(Part('compile', title, measure_compiled, arguments))
    rows = benchmarks.measure_parts(parts, Path(args.json), benchmarks.settings(args, 'configs'))
    print(benchmarks.markdown_table(rows, {'part': 'compiled', **COLUMNS}))
    failed = benchmarks.failures(rows)
    print(*failed, sep='\n', end='\n' if failed else '', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
