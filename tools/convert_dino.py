"""Convert a trained DINO into an SMCA-DINO, from images without annotations.

    python tools/convert_dino.py mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py dino.pth \
        --to configs/smca_dino/smca-dino_r50_8xb2-12e_coco.py --images data/coco/train2017 start.pth

A Deformable DETR with one stage and without refinement becomes an SMCA in the same way.

If the SMCA-DINO has another encoder than DINO's, the encoder first learns to imitate DINO's. An
interrupted imitation continues when the command is repeated.
"""

import argparse
import sys

from mmsmca.conversion.convert import convert
from mmsmca.errors import command


@command
def main() -> None:
    """Convert the detector and print how well it fits."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        'config',
        help="config of the DINO or Deformable DETR, a file or one of MMDetection's (mmdet::...)",
    )
    add('checkpoint', help='its weights')
    add('out', help='checkpoint to write, .pth or .safetensors; must not exist')
    add('--to', required=True, metavar='CONFIG', help='config of the SMCA-DINO or SMCA')
    add('--images', required=True, metavar='FOLDER', help='images like those of the training set')
    add(
        '--annotations',
        metavar='FILE',
        help="the images' annotations in COCO's format, to compare the AP of both detectors",
    )
    add('--fit-images', type=int, default=200, help='most images for the fits; default: 200')
    add('--iterations', type=int, default=2000, help='of the imitation; default: 2000')
    add('--batch-size', type=int, help="images at a time; default: the DINO config's")
    add('--amp', action='store_true', help='imitate in mixed precision')
    args = parser.parse_args()
    convert(**vars(args))


if __name__ == '__main__':
    sys.exit(main())
