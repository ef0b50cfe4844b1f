"""Benchmark exported detectors against PyTorch: latency, throughput, memory, file size and AP.

Example: python tools/analysis_tools/benchmark_runtimes.py \
    configs/smca/smca_r50_8xb2-50e_coco.py --threads 1 2

All forms run in turns with PyTorch on the same random image. With --checkpoint and --evaluate, the
AP of PyTorch and of each form is measured on the config's test data, and int8 is calibrated on its
training data.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import benchmarks
import numpy as np
import torch
from matplotlib.figure import Figure
from mmdet.registry import MODELS
from mmengine.config import Config

from mmsmca.checks.config import load_config
from mmsmca.checks.preflight import check_config
from mmsmca.denormals import flush_denormals
from mmsmca.deployment import comparison, onnx_graph, openvino_model, program, runtimes
from mmsmca.deployment.export import calibration_images, register_quietly
from mmsmca.engine import timing
from mmsmca.errors import command
from mmsmca.files import write_json
from mmsmca.models import SMCADETR
from mmsmca.visualization.panels import save_figure

TORCH = 'PyTorch'
# Seconds for the threads of a runtime to go to sleep before another one is timed.
PAUSE = 0.3
# File and precision by name of the form.
FORMS = {
    'onnxruntime': ('float32.onnx', 'f32'),
    'onnxruntime, int8': ('int8.onnx', 'f32'),
    'OpenVINO': ('float32.xml', 'f32'),
    'OpenVINO, bfloat16': ('float32.xml', 'bf16'),
    'OpenVINO, int8': ('int8.xml', 'f32'),
    'OpenVINO, int8 and bfloat16': ('int8.xml', 'bf16'),
}
COLUMNS = {
    'size': 'image',
    'threads': 'threads',
    'form': 'form',
    'latency_ms': 'latency, ms',
    'time': 'latency vs PyTorch',
    'images_per_second': 'images/s',
    'memory_mib': 'memory, MiB',
    'file_mib': 'file, MiB',
}


def load(args: argparse.Namespace) -> tuple[Config, SMCADETR, dict]:
    """Load the config, the detector and the metadata to export."""
    cfg = load_config(
        argparse.Namespace(config=args.config, cfg_options=None, checkpoint=args.checkpoint)
    )
    check_config(cfg, phases=('train', 'test') if args.evaluate else ())
    if args.checkpoint:
        return cfg, *program.load_model(cfg)
    cfg.model.backbone.init_cfg = None
    torch.manual_seed(0)
    model = MODELS.build(cfg.model)
    program.check_supported(model)
    model.init_weights()
    return cfg, model.eval(), {}


def export(args: argparse.Namespace, folder: Path) -> None:
    """Write the files of the forms, unless they are all in the folder."""
    needed = {FORMS[name][0] for name in args.forms}
    if all((folder / name).exists() for name in needed):
        return
    cfg, model, metadata = load(args)
    traced = program.trace(model)
    images = calibration_images(cfg, 300) if args.evaluate else comparison.check_images()
    for form in (onnx_graph, openvino_model):
        if not any(name.endswith(form.SUFFIX) for name in needed):
            continue
        converted = form.convert(traced, metadata)
        form.save(converted, folder / f'float32{form.SUFFIX}')
        if f'int8{form.SUFFIX}' in needed:
            form.save(form.quantize(converted, images), folder / f'int8{form.SUFFIX}')


def start(name: str, folder: Path, threads: int, streams: int = 1) -> runtimes.Detect:
    """Start a form; with several streams, onnxruntime gets one thread per call instead."""
    file, precision = FORMS[name]
    if file.endswith('.onnx'):
        threads = threads if streams == 1 else 1
        return runtimes.start_onnxruntime(folder / file, threads, flush_denormals=True)
    return runtimes.start_openvino(folder / file, threads, precision, streams)


def random_image(height: int, width: int) -> np.ndarray:
    """Make a random image, BGR, (H, W, 3), uint8."""
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def run_torch(model: SMCADETR, images: list[np.ndarray]) -> runtimes.Detections:
    """Detect in PyTorch, with the configured handling of denormal numbers.

    Every call of an onnxruntime session changes the calling thread's setting to its own.
    """
    flush_denormals()
    return comparison.run_torch(model, images)


def peak_memory(
    name: str, folder: Path, size: tuple[int, int], threads: int, args: argparse.Namespace
) -> float | None:
    """Peak memory of loading the detector and of two forward passes, in MiB."""
    register_quietly()
    torch.set_num_threads(threads)
    image = random_image(*size)

    def run() -> None:
        if name == TORCH:
            detect: runtimes.Detect = partial(comparison.run_torch, load(args)[1])
        else:
            detect = start(name, folder, threads)
        for _ in range(2):
            detect([image])

    return benchmarks.peak_memory(run)


def images_per_second(
    name: str, folder: Path, threads: int, image: np.ndarray, seconds: float
) -> float:
    """Throughput with one stream per thread, measured for about the given number of seconds."""
    detect = start(name, folder, threads, streams=threads)
    detect([image])

    def work(_: int) -> int:
        count = 0
        while not count or time.perf_counter() < begin + seconds:
            detect([image])
            count += 1
        return count

    begin = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(work, range(threads)))
    return count / (time.perf_counter() - begin)


def measure(
    model: SMCADETR, folder: Path, size: tuple[int, int], threads: int, args: argparse.Namespace
) -> list[dict]:
    """Measure a row for PyTorch and for every form, at one size and number of threads."""
    torch.set_num_threads(threads)
    image = random_image(*size)
    calls: dict[str, Callable[[], object]] = {TORCH: partial(run_torch, model, [image])}
    for name in args.forms:
        calls[name] = partial(start(name, folder, threads), [image])
    times = timing.interleaved_times(calls, args.rounds, pause=PAUSE)
    rows = []
    for name in calls:
        low, high = timing.paired_spread(times[name], times[TORCH])
        latency = statistics.median(times[name])
        row = dict(
            form=name,
            size='x'.join(map(str, size)),
            threads=threads,
            latency_ms=1e3 * latency,
            time_vs_torch=timing.paired_ratio(times[name], times[TORCH]),
            time_quartiles=[low, high],
        )
        if args.memory:
            row['memory_mib'] = benchmarks.in_fresh_process(
                peak_memory, name, folder, size, threads, args
            )
        if name != TORCH:
            row['images_per_second'] = images_per_second(
                name, folder, threads, image, args.rounds * latency
            )
            file = folder / FORMS[name][0]
            files = {file, file.with_suffix('.bin')} if file.suffix == '.xml' else {file}
            row['file_mib'] = sum(path.stat().st_size for path in files) / 2**20
        rows.append(row)
    return rows


def table(rows: list[dict]) -> str:
    """Format the rows in Markdown."""
    shown = []
    for row in rows:
        low, high = row['time_quartiles']
        shown.append(dict(row, time=f'{row["time_vs_torch"]:.3g} ({low:.3g} to {high:.3g})'))
    return benchmarks.markdown_table(shown, COLUMNS)


def evaluate(cfg: Config, model: SMCADETR, folder: Path, args: argparse.Namespace) -> dict:
    """AP of PyTorch and of every form, in percent."""
    threads = max(args.threads)
    torch.set_num_threads(threads)
    ap = {}
    for name in (TORCH, *args.forms):
        detect = partial(run_torch, model) if name == TORCH else start(name, folder, threads)
        ap[name] = 100 * comparison.average_precision(detect, cfg)
        print(f'AP of {name}: {ap[name]:.1f}', flush=True)
    return ap


def plot(result: dict, path: Path) -> None:
    """Plot AP over latency at the first size and with the most threads, one point per form.

    Args:
        result: Results: ``rows`` and ``ap``.
        path: Picture to write; a copy with the suffix .svg is written beside it.
    """
    threads = max(row['threads'] for row in result['rows'])
    rows = [
        row
        for row in result['rows']
        if (row['size'], row['threads']) == (result['rows'][0]['size'], threads)
    ]
    figure = Figure(figsize=(7, 4.2), layout='constrained')
    axes = figure.subplots()
    for row in rows:
        axes.plot(row['latency_ms'], result['ap'][row['form']], 'o', label=row['form'])
    reference = result['ap'][TORCH]
    axes.axhspan(reference - 1, reference + 1, color='0.93', label='PyTorch ± 1 AP', zorder=0)
    axes.set(
        xlabel=f'latency of an image of {rows[0]["size"]}, {threads} threads, ms',
        ylabel='AP',
        xlim=(0, None),
        ylim=(reference - 4, reference + 2),
    )
    figure.legend(loc='outside right upper', frameon=False)
    save_figure(figure, path)


def size(text: str) -> tuple[int, int]:
    """Parse HxW from the command line."""
    height, width = text.split('x')
    if min(int(height), int(width)) < 1:
        raise ValueError
    return int(height), int(width)


def count(text: str) -> int:
    """Parse a positive number."""
    if int(text) < 1:
        raise ValueError
    return int(text)


def parse_args() -> argparse.Namespace:
    parser = benchmarks.argument_parser(__doc__.splitlines()[0], rounds=7)
    parser.add_argument('config', help='config of an SMCA that can be exported')
    parser.add_argument('--checkpoint', help='its weights; default: those training starts from')
    parser.add_argument(
        '--shapes', type=size, nargs='+', default=[(640, 640), (800, 1333)], metavar='HxW',
        help='sizes of the image',
    )  # fmt: skip
    parser.add_argument('--threads', type=count, nargs='+', default=[1, 2])
    parser.add_argument('--forms', nargs='+', choices=FORMS, default=list(FORMS))
    parser.add_argument(
        '--folder', help='keep the exported files there, and reuse those already there'
    )
    parser.add_argument(
        '--no-memory', dest='memory', action='store_false', help='do not measure memory'
    )
    parser.add_argument(
        '--evaluate', action='store_true', help="also measure AP, on the config's test data"
    )
    parser.add_argument(
        '--plot', type=Path, help='picture of AP over latency, .png; an .svg beside it'
    )
    args = parser.parse_args()
    if args.rounds < 1:
        parser.error('--rounds must be at least 1')
    if args.evaluate and not args.checkpoint:
        parser.error('--evaluate needs --checkpoint: without training there is no AP')
    if args.plot and not args.evaluate:
        parser.error('--plot needs --evaluate: it draws AP')
    return args


def run(args: argparse.Namespace, folder: Path) -> None:
    """Measure, print, write."""
    export(args, folder)
    cfg, model, _ = load(args)
    result: dict = dict(settings=benchmarks.settings(args), rows=[])
    if args.evaluate:
        result['ap'] = evaluate(cfg, model, folder, args)
    for shape in args.shapes:
        for threads in args.threads:
            rows = measure(model, folder, shape, threads, args)
            result['rows'] += rows
            print(f'{rows[0]["size"]}, {threads} threads: measured', flush=True)
            if args.json:  # Keeps these rows even if a later measurement fails.
                write_json(args.json, result)
    print(table(result['rows']))
    if args.plot:
        plot(result, args.plot)


@command
def main() -> None:
    """Measure, print, write."""
    args = parse_args()
    register_quietly()
    if args.folder:
        Path(args.folder).mkdir(parents=True, exist_ok=True)
        run(args, Path(args.folder))
    else:
        with tempfile.TemporaryDirectory() as folder:
            run(args, Path(folder))


if __name__ == '__main__':
    sys.exit(main())
