"""Generate the "digits" detection set; the defaults are the head-to-head's."""

import sys

from mmsmca.datasets.digits import make_digits
from mmsmca.datasets.generated_set import generate, parser
from mmsmca.errors import command


@command
def main() -> None:
    args = parser(__doc__, 'data/digits', num_val=200, size=192).parse_args()
    generate(make_digits, args)


if __name__ == '__main__':
    sys.exit(main())
