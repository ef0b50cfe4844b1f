"""Generate the "digits" detection data set: handwritten digits on photographs."""

import sys

from mmsmca.datasets.digits import Digits
from mmsmca.datasets.generated_set import generate
from mmsmca.errors import command


@command
def main() -> None:
    generate(Digits, __doc__, 'data/digits')


if __name__ == '__main__':
    sys.exit(main())
