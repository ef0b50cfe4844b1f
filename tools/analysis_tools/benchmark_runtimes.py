"""Latency and memory of a detector's ONNX graph in onnxruntime, beside PyTorch.

Example: python tools/benchmark_onnx.py configs/smca/smca_r50_8xb2-50e_coco.py --threads 1 2

The graph is measured as onnxruntime rewrites it to each degree, with denormal numbers taken as
zero, and with its matrix products quantised to int8; all in turns with PyTorch on the same random
image. With --checkpoint and --evaluate, the AP of the graph and of its quantised form is measured
on the config's test data.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import warnings
from functools import partial
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
sys.path.append(str(Path(__file__).parent / 'analysis_tools'))
import benchmarks
import numpy as np
import onnx
import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config

from mmsmca.checks.preflight import check_config, effective_config
from mmsmca.denormals import flush_denormals
from mmsmca.deployment import onnx_comparison, onnx_export, onnx_variants
from mmsmca.engine import timing
from mmsmca.errors import command
from mmsmca.models import SMCADETR

# By name: level of rewriting, whether denormals are taken as zero, whether quantised.
VARIANTS = {level: (level, False, False) for level in onnx_comparison.LEVELS}
VARIANTS |= {'denormals-as-zero': ('all', True, False), 'int8': ('all', True, True)}
TORCH = 'PyTorch'
COLUMNS = {
    'size': 'image',
    'threads': 'threads',
    'runtime': 'runtime',
    'latency_ms': 'latency, ms',
    'time': 'latency vs PyTorch',
    'memory_mib': 'memory, MiB',
}


def quiet() -> None:
    """Register MMDetection's modules, and print no warnings of the libraries about themselves."""
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    register_all_modules()


def load(args: argparse.Namespace) -> tuple[Config, SMCADETR, dict]:
    """Config, detector, and what its graph's user has to know."""
    cfg = effective_config(
        argparse.Namespace(config=args.config, cfg_options=None, checkpoint=args.checkpoint)
    )
    check_config(cfg, phases=('test',) if args.evaluate else ())
    if args.checkpoint:
        return cfg, *onnx_export.load_model(cfg)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    onnx_export.check_supported(model)
    model.init_weights()
    return cfg, model.eval(), {}


def random_image(height: int, width: int) -> np.ndarray:
    """BGR, (H, W, 3), uint8."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def start(name: str, folder: Path, threads: int):
    """A session of one of the variants, of the files that :func:`main` wrote."""
    level, as_zero, int8 = VARIANTS[name]
    graph = folder / ('int8.onnx' if int8 else 'float32.onnx')
    return onnx_comparison.start_session(graph, threads, level, as_zero)


def peak_memory(
    name: str, folder: Path, size: tuple[int, int], threads: int, args: argparse.Namespace
) -> float | None:
    """Memory of loading what is measured and of two passes, at its peak, in MiB."""
    quiet()
    torch.set_num_threads(threads)
    image = random_image(*size)

    def run() -> None:
        if name == TORCH:
            detect = partial(onnx_comparison.run_torch, load(args)[1])
        else:
            detect = partial(onnx_comparison.run_onnx, start(name, folder, threads))
        for _ in range(2):
            detect([image])

    return benchmarks.peak_memory(run, args.memory_limit)


def run_torch(model: SMCADETR, images: list[np.ndarray]) -> None:
    """Detect in PyTorch, with denormals as it is told to take them.

    Every call of a session sets the calling thread to the session's own way with them.
    """
    flush_denormals()
    onnx_comparison.run_torch(model, images)


def measure(
    model: SMCADETR, folder: Path, size: tuple[int, int], threads: int, args: argparse.Namespace
) -> list[dict]:
    """A row for PyTorch and for every variant, at one size and number of threads."""
    torch.set_num_threads(threads)
    image = random_image(*size)
    calls = {TORCH: partial(run_torch, model, [image])}
    for name in args.variants:
        calls[name] = partial(onnx_comparison.run_onnx, start(name, folder, threads), [image])
    times = timing.interleaved_times(calls, args.rounds)
    rows = []
    for name in calls:
        low, high = timing.paired_spread(times[name], times[TORCH])
        rows.append(
            dict(
                runtime=name if name == TORCH else f'onnxruntime, {name}',
                size='x'.join(map(str, size)),
                threads=threads,
                latency_ms=1e3 * statistics.median(times[name]),
                time_vs_torch=timing.paired_ratio(times[name], times[TORCH]),
                time_quartiles=[low, high],
                memory_mib=benchmarks.in_fresh_process(
                    peak_memory, name, folder, size, threads, args
                ),
            )
        )
    return rows


def table(rows: list[dict]) -> str:
    """The rows in Markdown."""
    shown = []
    for row in rows:
        low, high = row['time_quartiles']
        shown.append(dict(row, time=f'{row["time_vs_torch"]:.3g} ({low:.3g} to {high:.3g})'))
    return benchmarks.markdown_table(shown, COLUMNS)


def print_operators(proto: onnx.ModelProto, size: tuple[int, int], threads: int) -> None:
    """Print how many nodes the graph has, and which operators take the time."""
    counts = onnx_variants.operator_counts(proto)
    print(
        f'{sum(counts.values())} nodes:', ', '.join(f'{n} {op}' for op, n in counts.most_common())
    )
    times = onnx_variants.operator_times(proto, random_image(*size), threads)
    total = sum(times.values())
    shares = [f'{op} {100 * t / total:.1f} %' for op, t in list(times.items())[:12]]
    print(f'time at {size[0]} x {size[1]}, rewritten: {", ".join(shares)}')


def size(text: str) -> tuple[int, int]:
    """Parse a command line's HxW."""
    height, width = text.split('x')
    return int(height), int(width)


def parse_args() -> argparse.Namespace:
    parser = benchmarks.argument_parser(__doc__.splitlines()[0], rounds=7)
    parser.add_argument('config', help='config of an SMCA that can be exported')
    parser.add_argument('--checkpoint', help='its weights; default: those training starts from')
    parser.add_argument(
        '--shapes', type=size, nargs='+', default=[(640, 640), (800, 1333)], metavar='HxW',
        help='sizes of the image',
    )  # fmt: skip
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument(
        '--variants', nargs='+', choices=VARIANTS, default=list(VARIANTS),
        help='how much onnxruntime rewrites the graph, and what else is done to it',
    )  # fmt: skip
    parser.add_argument(
        '--evaluate', action='store_true', help="also measure AP, on the config's test data"
    )
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error('--rounds has to be at least 1')
    if args.evaluate and not args.checkpoint:
        parser.error('--evaluate needs --checkpoint: without training there is no AP')
    return args


def run(args: argparse.Namespace) -> None:
    """Measure, print, write."""
    cfg, model, metadata = load(args)
    proto = onnx_export.export(model, metadata)
    int8 = onnx_variants.quantize(proto)
    print_operators(proto, args.shapes[0], args.threads[0])
    result: dict = dict(settings=benchmarks.settings(args), rows=[])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        onnx_export.save(proto, folder / 'float32.onnx')
        onnx_export.save(int8, folder / 'int8.onnx')
        for shape in args.shapes:
            for threads in args.threads:
                result['rows'] += measure(model, folder, shape, threads, args)
    print(', '.join(f'{key} {value}' for key, value in result['settings'].items()))
    print(table(result['rows']))
    if args.evaluate:
        result['ap'] = {}
        for name, graph in (('float32', proto), ('int8', int8)):
            session = onnx_comparison.start_session(graph, max(args.threads), flush_denormals=True)
            result['ap'][name] = onnx_variants.average_precision(session, cfg)
            print(f'AP of the graph, {name}: {100 * result["ap"][name]:.1f}')
    if args.json:
        benchmarks.write_json(args.json, result)


@command
def main() -> None:
    """Measure, print, write."""
    args = parse_args()
    quiet()
    run(args)


if __name__ == '__main__':
    sys.exit(main())
