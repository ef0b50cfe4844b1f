"""Generate the "shapes" detection set; the defaults are the quick start's."""

import sys

from mmsmca.datasets.generated_set import generate, parser
from mmsmca.datasets.shapes import VARIANTS, make_shapes
from mmsmca.errors import command


@command
def main() -> None:
    arguments = parser(__doc__, 'data/shapes128', num_val=300, size=128)
    arguments.add_argument('--variant', choices=VARIANTS, default='easy', help='what tells a class')
    generate(make_shapes, arguments.parse_args())


if __name__ == '__main__':
    sys.exit(main())
