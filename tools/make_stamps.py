"""Generate the "stamps" detection data set: photographed objects pasted onto photographs."""

import sys

from mmsmca.datasets.generated_set import generate
from mmsmca.datasets.stamps import Stamps
from mmsmca.errors import command


@command
def main() -> None:
    generate(Stamps, __doc__, 'data/stamps')


if __name__ == '__main__':
    sys.exit(main())
