"""The export that tools/export_onnx.py and tools/export_openvino.py share."""

import argparse
import logging
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from mmdet.utils import register_all_modules
from mmengine.config import DictAction

from mmsmca.checks.config import load_config
from mmsmca.checks.preflight import check_config
from mmsmca.engine.quiet import quiet
from mmsmca.errors import ConfigError, UserError
from mmsmca.files import check_destination

from . import comparison
from .from_config import calibration_images, load_model
from .program import check_pytorch, trace
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


@quiet(logging.WARNING)
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
    check_pytorch()
    register_all_modules()
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
