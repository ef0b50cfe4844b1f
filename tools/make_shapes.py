"""Generate the "shapes" detection data set; the defaults are those of the quick start."""

import sys

from mmsmca.datasets.generated_set import generate, parser
from mmsmca.datasets.shapes import VARIANTS, Shapes
from mmsmca.errors import command


@command
def main() -> None:
    arguments = parser(Shapes, __doc__, 'data/shapes128')
    arguments.add_argument(
        '--variant', choices=VARIANTS, default='easy', help='what defines a class'
    )
    generate(Shapes, arguments.parse_args())


if __name__ == '__main__':
    sys.exit(main())
