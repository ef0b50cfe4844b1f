"""Convert a checkpoint of the paper's authors to ours.

Example: python tools/convert_checkpoint.py smca_authors.pth smca_r50.pth --num-classes 80
"""

import argparse
import sys

from mmsmca import checkpoints


def main() -> int:
    """Convert, and say what was found and done."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('src', help='checkpoint of the reference implementation, a .pth file')
    parser.add_argument('dst', help='file to write, for load_from and the test script')
    parser.add_argument(
        '--num-classes',
        type=int,
        help="80: keep COCO's categories in MMDetection's order, of the 92 rows by category id; "
        'default: keep all rows',
    )
    args = parser.parse_args()
    try:
        reference = checkpoints.load_reference(args.src)
        found = checkpoints.describe_reference(reference)
        converted = checkpoints.convert_reference(reference, args.num_classes)
        checkpoints.save(converted, args.dst)
    except checkpoints.CheckpointError as error:
        print(f'{args.src}: not converted: {error}', file=sys.stderr)
        return 2
    print(', '.join(f'{key} {value}' for key, value in found.items()))
    print(f'{args.dst}: all {len(converted)} tensors converted')
    return 0


if __name__ == '__main__':
    sys.exit(main())
