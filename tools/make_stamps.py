"""Generate the "stamps" detection set: photographed objects pasted on photographs."""

import argparse
import sys

from mmsmca.datasets.generated_set import generate, parser
from mmsmca.datasets.stamps import make_stamps
from mmsmca.errors import command


@command
def main() -> None:
    arguments = parser(__doc__, 'data/stamps', num_val=400, size=192)
    arguments.set_defaults(max_objects=6)
    arguments.add_argument(
        '--objects',
        metavar='DIR',
        default=argparse.SUPPRESS,
        help='folder with a folder of cut-out pictures per class (default: a Debian package)',
    )
    arguments.add_argument(
        '--backgrounds',
        metavar='DIR',
        default=argparse.SUPPRESS,
        help='folder of photographs (default: Debian packages)',
    )
    arguments.add_argument(
        '--cache', metavar='DIR', default='data/stamps_pictures', help='where packages are unpacked'
    )
    generate(make_stamps, arguments.parse_args())


if __name__ == '__main__':
    sys.exit(main())
