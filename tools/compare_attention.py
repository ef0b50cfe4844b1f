"""Draw the co-attention of several detectors to the same annotated objects side by side.

Example: python tools/compare_attention.py --detector DETR CONFIG CHECKPOINT \
    --detector SMCA CONFIG CHECKPOINT --images 000003.png 000006.png --out detr_smca.png
"""

import argparse
import sys
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import torch
from mmdet.registry import DATASETS
from mmengine.config import Config
from torch import Tensor

from mmsmca.checks.preflight import check_config
from mmsmca.errors import command
from mmsmca.visualization.comparison import comparison_figure
from mmsmca.visualization.inspection import VisualizationError, inspect_image, load_detector
from mmsmca.visualization.panels import save_figure


def largest_objects(cfg: Config, names: list[str]) -> list[tuple[str, Tensor]]:
    """Path and largest object (x1, y1, x2, y2) of each named image in a config's test data."""
    check_config(cfg, phases=('test',))
    dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, pipeline=[]))
    by_name = {
        Path(info['img_path']).name: info
        for info in map(dataset.get_data_info, range(len(dataset)))
    }
    objects = []
    for name in names:
        if name not in by_name:
            raise VisualizationError(
                f'image {name} is not among the {len(dataset)} images of {dataset.ann_file}'
            )
        boxes = torch.tensor(
            [i['bbox'] for i in by_name[name]['instances'] if not i['ignore_flag']]
        )
        if not len(boxes):
            raise VisualizationError(f'image {name} has no annotated object in {dataset.ann_file}')
        areas = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1)
        objects.append((by_name[name]['img_path'], boxes[areas.argmax()]))
    return objects


def draw(args: argparse.Namespace) -> list[Path]:
    """Draw what the command line asks for and return the files."""
    detectors = {
        name: load_detector(config, checkpoint, args.device)
        for name, config, checkpoint in args.detector
    }
    rows = []
    for path, box in largest_objects(Config.fromfile(args.detector[0][1]), args.images):
        inspections = {
            name: inspect_image(model, pipeline, path)
            for name, (model, pipeline) in detectors.items()
        }
        rows.append((box, inspections))
    return save_figure(comparison_figure(rows, args.layer), args.out)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        '--detector',
        nargs=3,
        action='append',
        required=True,
        metavar=('NAME', 'CONFIG', 'CHECKPOINT'),
        help='a detector and its title; can be repeated',
    )
    parser.add_argument(
        '--images',
        nargs='+',
        required=True,
        help="file names in the first detector's test data; the largest object of each is drawn",
    )
    parser.add_argument('--out', type=Path, required=True, help='picture, .png and .svg')
    parser.add_argument(
        '--layer', type=int, default=-1, help='decoder layer, from 0; default: the last'
    )
    parser.add_argument('--device', default='cpu', help='default: cpu')
    return parser.parse_args()


@command
def main() -> None:
    """Draw the picture and print its files."""
    print(*draw(parse_args()), sep='\n')


if __name__ == '__main__':
    sys.exit(main())
