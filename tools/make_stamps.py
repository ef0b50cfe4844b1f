"""Generate the "stamps" detection data set: photographed objects pasted onto photographs."""

import argparse
import sys

from mmsmca.datasets.generated_set import generate, parser
from mmsmca.datasets.stamps import Stamps
from mmsmca.errors import command


@command
def main() -> None:
    arguments = parser(Stamps, __doc__, 'data/stamps')
    arguments.add_argument(
        '--objects',
        metavar='DIR',
        default=argparse.SUPPRESS,
        help='folder with a subfolder of cut-out pictures per class (default: a Debian package)',
    )
    arguments.add_argument(
        '--backgrounds',
        metavar='DIR',
        default=argparse.SUPPRESS,
        help='folder of photographs (default: Debian packages)',
    )
    arguments.add_argument(
        '--cache', metavar='DIR', default=Stamps.cache, help='where packages are unpacked'
    )
    generate(Stamps, arguments.parse_args())


if __name__ == '__main__':
    sys.exit(main())
