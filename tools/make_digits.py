"""Generate the "digits" detection data set; the defaults are those of the digits study."""

import sys

from mmsmca.datasets.digits import Digits
from mmsmca.datasets.generated_set import generate, parser
from mmsmca.errors import command


@command
def main() -> None:
    generate(Digits, parser(Digits, __doc__, 'data/digits').parse_args())


if __name__ == '__main__':
    sys.exit(main())
