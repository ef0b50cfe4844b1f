"""The export that tools/export_onnx.py and tools/export_openvino.py share."""

import argparse
import copy
import logging
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import numpy as np
from mmdet.registry import DATASETS
from mmdet.utils import register_all_modules
from mmengine.config import Config, DictAction

from mmsmca.checks.config import load_config
from mmsmca.checks.preflight import check_config
from mmsmca.engine.timing import interleaved_times
from mmsmca.errors import ConfigError, DataError, UserError, one_line
from mmsmca.files import check_destination

from . import comparison
from .program import data_sets, load_model, trace
from .runtimes import Detect


def parser(description: str, suffix: str) -> argparse.ArgumentParser:
    """Build the argument parser of an export tool.

    Args:
        description: What the tool does.
        suffix: Suffix of the files it writes.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('config', help='config that the checkpoint was trained with')
    parser.add_argument('checkpoint', help='checkpoint written by training')
    parser.add_argument('out', help=f'file to write, {suffix}')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing file')
    parser.add_argument(
        '--int8', type=int, nargs='?', const=300, metavar='IMAGES',
        help='quantise backbone, neck and encoder, calibrated on this many training images; '
        '300 if no number is given',
    )  # fmt: skip
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='changes to the config, key=value'
    )
    return parser


def register_quietly() -> None:
    """Register MMDetection's modules, and silence the libraries' warnings."""
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    register_all_modules()


def calibration_images(cfg: Config, count: int) -> list[np.ndarray]:
    """Load training images, evenly spaced in the data set, with the test pipeline.

    Args:
        cfg: Config with training data.
        count: Number of images; all if there are fewer.

    Returns:
        Images, BGR, (H, W, 3), uint8.

    Raises:
        DataError: If the images cannot be loaded.
    """
    source = copy.deepcopy(next(data_sets(cfg.train_dataloader.dataset)))
    source.pipeline = next(data_sets(cfg.test_dataloader.dataset)).pipeline
    try:
        dataset = DATASETS.build(source)
        chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset)), dtype=int)
        images = [dataset[i]['inputs'].permute(1, 2, 0).numpy() for i in chosen]
    except Exception as error:  # any data set or transform may raise anything
        raise DataError(
            f'train_dataloader.dataset: no image to calibrate on ({one_line(error)}). Correct it, '
            'or export without --int8.'
        ) from error
    return images


def export(args: argparse.Namespace, form: ModuleType) -> bool:
    """Export a detector, compare it with the original, and write it if both agree.

    Args:
        args: The options of :func:`parser`.
        form: Module of the format, :mod:`.onnx_graph` or :mod:`.openvino_model`.

    Returns:
        Whether the file was written.

    Raises:
        UserError: If config, checkpoint, data or destination cannot be used.
    """
    register_quietly()
    out = Path(args.out)
    if out.suffix != form.SUFFIX:
        raise UserError(f'{out}: the file name must end in {form.SUFFIX}')
    check_destination(out, args.overwrite)
    if args.int8 is not None and args.int8 < 1:
        raise UserError(f'--int8 {args.int8}: at least one image is needed to calibrate on')
    cfg = load_config(args)
    if 'model' not in cfg:
        raise ConfigError(f'config {args.config} has no model. Specify a detector config.')
    check_config(cfg, phases=('train',) if args.int8 else ())
    model, metadata = load_model(cfg)
    calibration = calibration_images(cfg, args.int8) if args.int8 else []
    converted = form.convert(trace(model), metadata)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f'float32{form.SUFFIX}'
        form.save(converted, path)
        print(
            f'{form.RUNTIME} compared with PyTorch; tolerances: scores '
            f'{comparison.SCORE_TOLERANCE:g}, boxes {comparison.BOX_TOLERANCE:g} pixels'
        )
        if not _agree(model, form.start(path, precision='f32')):
            print(f'{out}: not written: it differs from PyTorch', file=sys.stderr)
            return False
        if args.int8:
            converted = form.quantize(converted, calibration)
            path = Path(folder) / f'int8{form.SUFFIX}'
            form.save(converted, path)
        detect = form.start(path)
        if args.int8 or form.fast_precision() != 'f32':
            print(f'as it runs here, {"int8 and " if args.int8 else ""}{form.fast_precision()}:')
            _agree(model, detect)
        for image in comparison.check_images():
            calls: dict[str, Callable[[], object]] = {
                'PyTorch': partial(comparison.run_torch, model, [image]),
                form.RUNTIME: partial(detect, [image]),
            }
            times = interleaved_times(calls, rounds=5)
            latencies = [f'{name} {statistics.median(t) * 1e3:.1f} ms' for name, t in times.items()]
            size = f'{image.shape[0]} x {image.shape[1]}'
            print(f'{size:24} latency: {", ".join(latencies)}')
    form.save(converted, out)
    print(f'{out}: written')
    return True


def _agree(model, detect: Detect) -> bool:
    """Compare both, print the differences, and return whether all are within the tolerances."""
    tolerable = True
    for batch in comparison.check_batches(comparison.check_images()):
        difference = comparison.compare(model, detect, batch)
        tolerable &= difference.tolerable
        sizes = ' and '.join(f'{height} x {width}' for height, width in difference.sizes)
        print(
            f'{sizes:24} max difference of scores {difference.scores:.1e}, of boxes '
            f'{difference.boxes:.1e} pixels; {difference.unmatched} unmatched'
        )
    return tolerable
