"""Generate the "digits" detection set; the defaults are the head-to-head's."""

import sys

from mmsmca.datasets.digits import Digits
from mmsmca.datasets.generated_set import generate, parser
from mmsmca.errors import command


@command
def main() -> None:
    generate(Digits, parser(Digits, __doc__, 'data/digits').parse_args())


if __name__ == '__main__':
    sys.exit(main())
