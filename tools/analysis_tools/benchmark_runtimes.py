"""Benchmark exported detectors against PyTorch: latency, throughput, memory, file size and AP.

Example: python tools/analysis_tools/benchmark_runtimes.py \
    configs/smca/smca_r50_8xb2-50e_coco.py --threads 1 2

All forms run in turns with PyTorch on the same random image, and with ``--rt-detr`` in turns with
RT-DETR R50 of transformers in the same form. With a checkpoint, the AP of PyTorch
and of each form is measured on the config's test data, and int8 is calibrated on its training data.
"""

import argparse
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import benchmarks
import numpy as np
import torch
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.structures import InstanceData
from rt_detr import DeployedRTDETR

from mmsmca.checks.config import load_config
from mmsmca.checks.preflight import check_config
from mmsmca.denormals import flush_denormals
from mmsmca.deployment import comparison, from_config, onnx_graph, openvino_model, program, runtimes
from mmsmca.engine import timing
from mmsmca.engine.quiet import quiet
from mmsmca.errors import UserError, command
from mmsmca.files import write_json
from mmsmca.models import SMCADETR, SMCADINO

TORCH = 'PyTorch'
RIVAL = 'RT-DETR, '
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
    'time_vs_torch': 'latency vs PyTorch',
    'quartiles': 'quartiles',
    'rt_detr_ms': 'RT-DETR, ms',
    'time_vs_rt_detr': 'latency vs RT-DETR',
    'rt_detr_quartiles': 'quartiles',
    'images_per_second': 'images/s',
    'memory_mib': 'memory, MiB',
    'file_mib': 'file, MiB',
    'ap': 'AP',
}


def load(args: argparse.Namespace) -> tuple[Config, SMCADETR | SMCADINO]:
    """Load the config and the detector."""
    cfg = load_config(
        argparse.Namespace(config=args.config, cfg_options=None, checkpoint=args.checkpoint)
    )
    check_config(cfg, phases=('train', 'test') if args.checkpoint else ())
    torch.manual_seed(0)
    return cfg, from_config.load_model(cfg)[0]


def export(cfg: Config, model: SMCADETR | SMCADINO, folder: Path, args: argparse.Namespace) -> None:
    """Write the files of the forms."""
    files = {FORMS[name][0] for name in args.forms}
    traced = program.trace(model)
    images = (
        from_config.calibration_images(cfg, 300) if args.checkpoint else comparison.check_images()
    )
    for form in (onnx_graph, openvino_model):
        if not any(name.endswith(form.SUFFIX) for name in files):
            continue
        converted = form.convert(traced, {})
        form.save(converted, folder / f'float32{form.SUFFIX}')
        if f'int8{form.SUFFIX}' in files:
            form.save(form.quantize(converted, images), folder / f'int8{form.SUFFIX}')


def start(name: str, folder: Path, threads: int, streams: int = 1) -> runtimes.Detect:
    """Start a form; with several streams, onnxruntime gets one thread per call instead."""
    file, precision = FORMS[name]
    if file.endswith('.onnx'):
        threads = threads if streams == 1 else 1
        return runtimes.start_onnxruntime(folder / file, threads, flush_denormals=True)
    return runtimes.start_openvino(folder / file, threads, precision, streams)


def random_image(size: tuple[int, int]) -> np.ndarray:
    """Make a random image, BGR, (H, W, 3), uint8."""
    return np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)


def run_torch(model: SMCADETR | SMCADINO, images: list[np.ndarray]) -> runtimes.Detections:
    """Detect in PyTorch, with the configured handling of denormal numbers.

    Every call of an onnxruntime session changes the calling thread's setting to its own.
    """
    flush_denormals()
    return comparison.run_torch(model, images)


@quiet(logging.WARNING)
def peak_memory(
    name: str, folder: Path, size: tuple[int, int], threads: int, args: argparse.Namespace
) -> float | None:
    """Peak memory of loading the detector and of two forward passes, in MiB."""
    torch.set_num_threads(threads)
    image = random_image(size)

    def run() -> None:
        if name == TORCH:
            detect: runtimes.Detect = partial(comparison.run_torch, load(args)[1])
        else:
            detect = start(name, folder, threads)
        for _ in range(2):
            detect([image])

    return benchmarks.peak_memory(run)


def images_per_second(detect: runtimes.Detect, streams: int, image: np.ndarray) -> float:
    """Throughput of parallel calls, three of each stream."""
    detect([image])
    begin = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        count = sum(pool.map(lambda _: len(detect([image])), range(3 * streams)))
    return count / (time.perf_counter() - begin)


def rivals(
    forms: list[str], folder: Path, size: tuple[int, int], threads: int
) -> dict[str, Callable[[], object]]:
    """RT-DETR in the same forms, exported on the first call for a size."""
    torch.manual_seed(0)
    rival, image = DeployedRTDETR(), random_image(size)
    if not folder.exists():
        folder.mkdir()
        rival.export(folder, size)
    inputs = [torch.from_numpy(x) for x in runtimes.pad([image])]
    calls: dict[str, Callable[[], object]] = {}
    for name in forms:
        call = (
            partial(rival, *inputs)
            if name == TORCH
            else partial(start(name, folder, threads), [image])
        )
        calls[RIVAL + name] = call
    return calls


def quartiles(times: list[float], reference: list[float]) -> str:
    """Quartiles of the ratios within a round, as text."""
    return ' to '.join(f'{x:.3g}' for x in timing.paired_spread(times, reference))


def measure(
    model: SMCADETR | SMCADINO,
    folder: Path,
    size: tuple[int, int],
    threads: int,
    args: argparse.Namespace,
) -> list[dict]:
    """Measure a row for PyTorch and for every form, at one size and number of threads."""
    torch.set_num_threads(threads)
    image = random_image(size)
    calls: dict[str, Callable[[], object]] = {TORCH: partial(run_torch, model, [image])}
    for name in args.forms:
        calls[name] = partial(start(name, folder, threads), [image])
    names = [*calls]
    if args.rt_detr:
        calls |= rivals(names, folder / 'x'.join(map(str, size)), size, threads)
    times = timing.interleaved_times(calls, args.rounds, pause=PAUSE)
    rows = []
    for name in names:
        row = dict(
            form=name,
            size='x'.join(map(str, size)),
            threads=threads,
            latency_ms=1e3 * statistics.median(times[name]),
            time_vs_torch=timing.paired_ratio(times[name], times[TORCH]),
            quartiles=quartiles(times[name], times[TORCH]),
        )
        if args.rt_detr:
            rival = times[RIVAL + name]
            row |= dict(
                rt_detr_ms=1e3 * statistics.median(rival),
                time_vs_rt_detr=timing.paired_ratio(times[name], rival),
                rt_detr_quartiles=quartiles(times[name], rival),
            )
            rows.append(row)
            continue
        row['memory_mib'] = benchmarks.in_fresh_process(
            peak_memory, name, folder, size, threads, args
        )
        if name != TORCH:
            detect = start(name, folder, threads, streams=threads)
            row['images_per_second'] = images_per_second(detect, threads, image)
            file = folder / FORMS[name][0]
            files = {file, file.with_suffix('.bin')} if file.suffix == '.xml' else {file}
            row['file_mib'] = sum(path.stat().st_size for path in files) / 2**20
        rows.append(row)
    return rows


def average_precision(detect: runtimes.Detect, cfg: Config) -> float:
    """Box AP of an exported detector on a config's test data, with its pipeline and evaluator.

    Args:
        detect: The exported detector.
        cfg: Config of the detector.

    Returns:
        COCO's AP over IoU 0.50 to 0.95, in [0, 1].
    """
    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    metric = METRICS.build(cfg.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    for data in map(dataset.__getitem__, range(len(dataset))):
        sample = data['data_samples']
        image = data['inputs'].permute(1, 2, 0).numpy()
        boxes, scores, labels = map(torch.from_numpy, detect([image])[0])
        boxes = boxes / torch.tensor(sample.scale_factor).repeat(2)
        sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        metric.process({}, [sample.to_dict()])
    return metric.evaluate(len(dataset))['coco/bbox_mAP']


def size(text: str) -> tuple[int, int]:
    """Parse HxW from the command line."""
    height, width = text.split('x')
    return int(height), int(width)


def parse_args() -> argparse.Namespace:
    parser = benchmarks.argument_parser(__doc__.splitlines()[0], rounds=7)
    parser.add_argument('config', help='config of an SMCA that can be exported')
    parser.add_argument('--checkpoint', help='trained weights, whose AP is measured too')
    parser.add_argument(
        '--shapes', type=size, nargs='+', default=[(640, 640), (800, 1333)], metavar='HxW',
        help='sizes of the image',
    )  # fmt: skip
    parser.add_argument(
        '--rt-detr',
        action='store_true',
        help='compare the latency with that of RT-DETR R50 (transformers), and nothing else; '
        'without int8',
    )
    parser.add_argument('--threads', type=int, nargs='+', default=[1, 2])
    parser.add_argument('--forms', nargs='+', choices=FORMS, default=list(FORMS))
    return parser.parse_args()


@command
@quiet(logging.WARNING)
def main() -> None:
    """Measure, print, write."""
    args = parse_args()
    if args.rt_detr:
        if find_spec('transformers') is None:
            raise UserError("--rt-detr needs transformers: pip install 'mmsmca[transformers]'")
        args.forms = [form for form in args.forms if FORMS[form][0].startswith('float32')]
    cfg, model = load(args)
    rows, ap = [], {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        export(cfg, model, folder, args)
        if args.checkpoint:
            torch.set_num_threads(max(args.threads))
            for form in (TORCH, *args.forms):
                detect = (
                    partial(run_torch, model)
                    if form == TORCH
                    else start(form, folder, max(args.threads))
                )
                ap[form] = 100 * average_precision(detect, cfg)
        for shape in args.shapes:
            for threads in args.threads:
                for row in measure(model, folder, shape, threads, args):
                    rows.append(row | (dict(ap=ap[row['form']]) if ap else {}))
    if args.json:
        write_json(args.json, dict(settings=benchmarks.settings(args), rows=rows))
    print(benchmarks.markdown_table(rows, COLUMNS))


if __name__ == '__main__':
    sys.exit(main())
