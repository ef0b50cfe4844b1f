"""Convert checkpoints between the authors' parameter names and ours, or warm-start from a DETR.

    python tools/convert_checkpoint.py authors.pth ours.pth --num-classes 80
    python tools/convert_checkpoint.py ours.pth authors.pth
    python tools/convert_checkpoint.py detr.pth start.pth --warm-start CONFIG

The parameter names determine the direction. Files may be .pth or .safetensors.
"""

import argparse
import sys

from mmsmca.checkpoints import files as checkpoint_files
from mmsmca.checkpoints import names as checkpoints
from mmsmca.checkpoints import warm_start
from mmsmca.checkpoints.files import CheckpointError
from mmsmca.errors import command


@command
def main() -> None:
    """Convert a checkpoint and print what happened to every tensor."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('src', help='checkpoint to read')
    parser.add_argument('dst', help='checkpoint to write; must not exist')
    options = parser.add_mutually_exclusive_group()
    options.add_argument(
        '--num-classes',
        type=int,
        help="80: of the authors' 92 rows by category id, keep those of COCO's categories in "
        "MMDetection's order; this cannot be undone. Default: keep all rows",
    )
    options.add_argument(
        '--warm-start',
        metavar='CONFIG',
        help="config of an SMCA that starts from SRC, a DETR or Deformable DETR (MMDetection's or "
        "the original) or an SMCA (ours or the authors', of other classes): DST gets what they "
        "share, for the config's load_from",
    )
    args = parser.parse_args()
    checkpoint_files.check_destination(args.dst)
    source = checkpoint_files.read_tensors(args.src)
    if args.warm_start:
        start(source, args.dst, args.warm_start)
    elif checkpoints.is_reference(source):
        to_ours(source, args.dst, args.num_classes)
    else:
        to_reference(source, args.dst, args.num_classes)


def to_ours(source: dict, dst: str, num_classes: int | None) -> None:
    converted = checkpoints.convert_reference(source, num_classes)
    checkpoint_files.write(converted, dst)
    report_names(source, converted)
    print(f'{dst}: all {len(converted)} tensors converted to our names')
    if num_classes:
        print(
            f'{num_classes} rows of the classifier kept: this cannot be converted back to the '
            "authors' names"
        )


def to_reference(source: dict, dst: str, num_classes: int | None) -> None:
    if num_classes is not None:
        raise CheckpointError("--num-classes is for checkpoints of the authors' code")
    converted = checkpoints.convert_to_reference(source)
    checkpoint_files.write(converted, dst, key='model')
    report_names(source, converted)
    print(f"{dst}: all {len(converted)} tensors converted to the authors' names")


def report_names(source: dict, converted: dict) -> None:
    """Print one line per tensor; both are in the same order."""
    for (name, old), (new_name, new) in zip(source.items(), converted.items(), strict=True):
        rows = '' if new.shape == old.shape else f', {len(new)} of {len(old)} rows'
        print(f'{name} -> {new_name} {tuple(new.shape)}{rows}')


def start(source: dict, dst: str, config: str) -> None:
    result = warm_start.warm_start(source, warm_start.model_tensors(config))
    checkpoint_files.write(result.state_dict, dst)
    for name in result.state_dict:
        print(f'loaded  {name}')
    for name in result.fresh:
        print(f'fresh   {name}')
    print(
        f'{dst}: {len(result.state_dict)} tensors loaded from this {result.source}, '
        f'{len(result.fresh)} start fresh as {config} initialises them'
    )


if __name__ == '__main__':
    sys.exit(main())
