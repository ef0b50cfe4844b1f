"""Generate the "shapes" detection data set: coloured shapes on blotches."""

import sys

from mmsmca.datasets.generated_set import generate
from mmsmca.datasets.shapes import Shapes
from mmsmca.errors import command


@command
def main() -> None:
    generate(Shapes, __doc__, 'data/shapes128')


if __name__ == '__main__':
    sys.exit(main())
