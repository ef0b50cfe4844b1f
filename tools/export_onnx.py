"""Export a trained SMCA to ONNX, and compare the graph with PyTorch.

Example: python tools/export_onnx.py configs/smca/smca_r50_8xb2-50e_coco.py smca_r50.pth smca.onnx

Exit status: 0 if the graph was written; 1 if it is not because it differs from PyTorch by more than
the tolerances; 2 if config, checkpoint or destination cannot be used.
"""

import argparse
import logging
import statistics
import sys
import warnings
from functools import partial

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
from mmdet.utils import register_all_modules
from mmengine.config import DictAction

from mmsmca.checks.preflight import check_config, effective_config
from mmsmca.engine.timing import interleaved_times
from mmsmca.errors import ConfigError, command
from mmsmca.files import check_destination

try:
    from mmsmca.deployment import onnx_comparison, onnx_export
except ModuleNotFoundError as error:
    if not error.name.startswith('onnx'):
        raise
    print(
        f'export_onnx.py: error: {error.name} is not installed: pip install onnx onnxruntime '
        'onnxscript',
        file=sys.stderr,
    )
    sys.exit(2)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config that the checkpoint was trained with')
    parser.add_argument('checkpoint', help='checkpoint, as training writes it')
    parser.add_argument('out', help='file to write, .onnx')
    parser.add_argument('--overwrite', action='store_true', help='replace an existing file')
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, help='changes of the config, key=value'
    )
    return parser.parse_args()


def export(args: argparse.Namespace) -> bool:
    """Export, compare and, if the two agree, write; whether they do."""
    check_destination(args.out, args.overwrite)
    cfg = effective_config(args)
    if 'model' not in cfg:
        raise ConfigError(f'config {args.config} has no model. Name the config of a detector.')
    check_config(cfg, phases=())
    model, metadata = onnx_export.load_model(cfg)
    proto = onnx_export.export(model, metadata)
    session = onnx_comparison.start_session(proto)

    print(
        f'onnxruntime beside PyTorch; tolerances: scores {onnx_comparison.SCORE_TOLERANCE:g}, '
        f'boxes {onnx_comparison.BOX_TOLERANCE:g} pixels'
    )
    images = onnx_comparison.check_images()
    differences = []
    for batch in onnx_comparison.check_batches(images):
        difference = onnx_comparison.compare(model, session, batch)
        differences.append(difference)
        sizes = ' and '.join(f'{height} x {width}' for height, width in difference.sizes)
        print(
            f'{sizes:24} max difference of scores {difference.scores:.1e}, of boxes '
            f'{difference.boxes:.1e} pixels; {difference.unmatched} unmatched'
        )
    if not all(difference.tolerable for difference in differences):
        print(f'{args.out}: not written: the graph differs from PyTorch', file=sys.stderr)
        return False
    for image in images:
        times = interleaved_times(
            {
                'PyTorch': partial(onnx_comparison.run_torch, model, [image]),
                'onnxruntime': partial(onnx_comparison.run_onnx, session, [image]),
            },
            rounds=5,
        )
        size = f'{image.shape[0]} x {image.shape[1]}'
        latencies = [f'{name} {statistics.median(t) * 1e3:.1f} ms' for name, t in times.items()]
        print(f'{size:24} latency: {", ".join(latencies)}')
    onnx_export.save(proto, args.out)
    print(f'{args.out}: written')
    return True


@command
def main() -> int:
    """Export, and say how well the graph agrees."""
    args = parse_args()
    # Of PyTorch's exporter, about itself; and of MMEngine, about every parameter.
    warnings.simplefilter('ignore')
    logging.disable(logging.WARNING)
    register_all_modules()
    return 0 if export(args) else 1


if __name__ == '__main__':
    sys.exit(main())
