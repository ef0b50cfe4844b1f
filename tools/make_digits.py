"""Generate the "digits" detection set; the defaults are the head-to-head's."""

import argparse

from mmsmca.datasets.digits import make_digits


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument('out_dir', help='folder of the set, for example data/digits')
    parser.add_argument('--train', type=int, default=4000, help='number of training images')
    parser.add_argument('--val', type=int, default=200, help='number of validation images')
    parser.add_argument('--tune', type=int, help='number of images to choose by (None: as --val)')
    parser.add_argument('--size', type=int, default=192, help='side of the images in pixels')
    parser.add_argument('--max-objects', type=int, default=3, help='most objects in an image')
    parser.add_argument('--seed', type=int, default=0, help='seed of everything random')
    args = parser.parse_args()
    try:
        written = make_digits(
            args.out_dir,
            num_train=args.train,
            num_val=args.val,
            num_tune=args.tune,
            size=args.size,
            max_objects=args.max_objects,
            seed=args.seed,
        )
    except (ValueError, OSError, ModuleNotFoundError) as error:
        parser.exit(2, f'make_digits.py: error: {error}\n')
    print(f'{args.out_dir}: {"written" if written else "already there, nothing to do"}')


if __name__ == '__main__':
    main()
