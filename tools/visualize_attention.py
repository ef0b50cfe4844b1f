"""Draw where in an image the queries of an SMCA or SMCA-DINO detector attend.

Example: python tools/visualize_attention.py CONFIG CHECKPOINT IMAGE --out DIRECTORY
"""

import argparse
import sys
from pathlib import Path

import mmcv

from mmsmca.errors import UserError, command
from mmsmca.visualization.figures import detections_image, query_figure, summary_figure
from mmsmca.visualization.inspection import inspect_image, load_detector
from mmsmca.visualization.panels import save_figure


def draw(args: argparse.Namespace) -> list[Path]:
    """Draw what the command line asks for and return the files."""
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f'--out {args.out} is a file: choose a folder')
    model = load_detector(args.config, args.checkpoint, args.device)
    inspection = inspect_image(model, model.cfg, args.image, model.dataset_meta['classes'])
    queries = args.queries or inspection.best_queries(args.best)
    detections = detections_image(inspection, queries, args.layer)
    args.out.mkdir(parents=True, exist_ok=True)
    files = [args.out / 'detections.png']
    mmcv.imwrite(detections[..., ::-1], str(files[0]))
    files += save_figure(summary_figure(inspection, queries, args.layer), args.out / 'summary')
    for row, query in enumerate(queries, start=1):
        files += save_figure(query_figure(inspection, query, args.layer), args.out / f'row_{row}')
    return files


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('config', help='config file of a detector with a spatial prior')
    parser.add_argument('checkpoint', help='its weights')
    parser.add_argument('image', help='image file')
    parser.add_argument('--out', type=Path, required=True, help='directory for the pictures')
    parser.add_argument(
        '--queries', type=int, nargs='+', help='indices of the queries; default: the best ones'
    )
    parser.add_argument(
        '--best', type=int, default=3, help='number of queries with the highest scores; default: 3'
    )
    parser.add_argument(
        '--layer', type=int, default=-1, help='decoder layer, from 0; default: the last'
    )
    parser.add_argument('--device', default='cpu', help='default: cpu')
    args = parser.parse_args()
    if args.best < 1:
        parser.error('--best must be at least 1')
    return args


@command
def main() -> None:
    """Draw the pictures and print their files."""
    print(*draw(parse_args()), sep='\n')


if __name__ == '__main__':
    sys.exit(main())
