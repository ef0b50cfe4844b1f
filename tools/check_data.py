"""List all that is wrong with a config and its data, and draw a page of annotated images.

Training refuses the first error; this lists all, and loads every image. The exit status is 0 if
training would start, 1 if there are errors, and 2 if the config cannot be read.
"""

import argparse
import sys
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
from mmengine.config import Config, DictAction

from mmsmca.checks.coco_file import KINDS
from mmsmca.checks.config import load_config
from mmsmca.checks.images import image_faults
from mmsmca.checks.load_image import naming_images
from mmsmca.checks.preflight import find_faults
from mmsmca.checks.renumber import write_corrected
from mmsmca.checks.trial import trial_faults
from mmsmca.errors import Found, RepairableError, T, UserError, command
from mmsmca.files import check_destination
from mmsmca.visualization.annotations import draw_page


class Faults:
    """What checks find, printed at once.

    Attributes:
        errors: Errors so far.
        warnings: Number of warnings.
    """

    def __init__(self) -> None:
        self.errors: list[UserError] = []
        self.warnings = 0

    def show(self, checks: Found[T]) -> T:
        """Run checks, and return what they return."""
        while True:
            try:
                fault = next(checks)
            except StopIteration as end:
                return end.value
            if isinstance(fault, UserError):
                self.errors.append(fault)
                print(f'error: {fault}', flush=True)
            else:
                self.warnings += 1
                print(f'warning: {fault}', flush=True)


def check(cfg: Config, page: Path) -> list[UserError]:
    """Print all faults and what the annotation files have, and draw the page."""
    tested, validated = (
        [cfg.get(f'{phase}_{part}') for part in ('dataloader', 'evaluator')]
        for phase in ('test', 'val')
    )
    phases = ('train', 'val', 'test') if tested[0] and tested != validated else ('train', 'val')
    faults = Faults()
    with naming_images():
        used = faults.show(find_faults(cfg, phases))
        faults.show(image_faults(used))
        sets = {one.dataset.ann_file: one for one in used}
        for path, (_, _, file, _) in sets.items():
            boxes = [f'{name} {file.count(KINDS, [name]).total()}' for name in file.categories]
            print(f'{path}: {len(file.images)} images; boxes: {", ".join(boxes)}')
        drawn = draw_page([*sets.values()], page)
        if drawn:
            print(f'{page}: {drawn} annotated images to look at')
        if not faults.errors:
            print('Trying a step of training and an evaluation of two images ...', flush=True)
            faults.show(trial_faults(cfg, 'train'))
    outcome = 'would not start' if faults.errors else 'would start'
    print(f'Errors: {len(faults.errors)}, warnings: {faults.warnings}. Training {outcome}.')
    return faults.errors


def renumber(errors: list[UserError], destination: str) -> None:
    """Write a corrected copy of the first file that needs one, and print what was changed."""
    paths = list(dict.fromkeys(one.path for one in errors if isinstance(one, RepairableError)))
    if not paths:
        print(f'No annotation file needs a corrected copy: {destination} is not written.')
        return
    for change in write_corrected(paths[0], destination):
        print(f'{destination}: {change}')
    print(f'Use {destination} in the config in the place of {paths[0]}.')
    for path in paths[1:]:
        print(f'{path} needs a copy too. Change the config, then run this with another name.')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file of a training')
    parser.add_argument(
        '--renumber',
        metavar='JSON',
        help='write a corrected copy of the first annotation file that has ids or keys that '
        'evaluations misread',
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='changes of the config')
    return parser.parse_args()


@command
def main() -> int:
    """Check, and write the copy."""
    args = parse_args()
    cfg = load_config(args)
    if args.renumber:
        check_destination(args.renumber)
    folder = cfg.get('work_dir') or f'work_dirs/{Path(args.config).stem}'
    errors = check(cfg, Path(folder) / 'annotations.png')
    if args.renumber:
        renumber(errors, args.renumber)
    return 1 if errors else 0


if __name__ == '__main__':
    sys.exit(main())
