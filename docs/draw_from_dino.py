"""Draw where one query of a DINO samples, and the Gaussians that were fitted to its points.

python docs/draw_from_dino.py DINO_CONFIG DINO.pth SMCA_DINO_CONFIG CONVERTED.pth IMAGE

writes docs/figures/from_dino.png: the query with the highest score, in the last decoder layer.
"""

import sys
from pathlib import Path

import cv2
import matplotlib
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

matplotlib.use('agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.patches import Ellipse, Rectangle  # noqa: E402

from mmsmca.checkpoints.files import read_tensors  # noqa: E402
from mmsmca.conversion.convert import build  # noqa: E402
from mmsmca.conversion.from_dino import observing, run_dino  # noqa: E402
from mmsmca.conversion.images import UnlabelledImages  # noqa: E402
from mmsmca.conversion.sampling import sampled_points  # noqa: E402

FIGURE = Path(__file__).parent / 'figures/from_dino.png'
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7', '#E69F00')  # of the levels


@torch.no_grad()
def main(source: str, dino_weights: str, target: str, weights: str, image: str) -> None:
    """Draw and save the figure."""
    init_default_scope('mmdet')
    configs = Config.fromfile(source), Config.fromfile(target)
    dino, smca_dino = (build(cfg).eval() for cfg in configs)
    dino.load_state_dict(read_tensors(dino_weights))
    smca_dino.load_state_dict(read_tensors(weights))
    dataset = configs[0].test_dataloader.dataset
    (sample,) = UnlabelledImages([image], dataset.pipeline)
    batch = dict(inputs=[sample['inputs']], data_samples=[sample['data_samples']])
    with observing(dino) as layers:
        *_, scores = run_dino(dino, batch)
    query = scores[0].argmax()
    features = layers[-1]['query'] + layers[-1]['query_pos']
    boxes = layers[-1]['boxes']
    # Everything in pixels of the image.
    pixels = cv2.imread(image)[:, :, ::-1]
    height, width = pixels.shape[:2]
    size = torch.tensor((width, height), dtype=torch.float32)
    offsets, shares = sampled_points(dino.decoder.layers[-1].cross_attn, features)
    box = boxes[0, query] * size.repeat(2)
    points = box[:2] + offsets[0, query] * box[2:]
    seen = torch.tensor(sample['data_samples'].img_shape[::-1])  # by the detectors
    prior = smca_dino.decoder.layers[-1].spatial_prior(features, boxes, seen[None])
    cell = smca_dino.decoder.strides[0] * size / seen
    centers = prior.centers[0, :, query] * cell
    deviations = (0.5 / prior.precisions[0, :, query]).sqrt() * cell
    plt.rcParams.update({'font.size': 9})
    figure, grid = plt.subplots(2, 4, figsize=(9, 5.1), layout='constrained')
    for head, axes in enumerate(grid.flat):
        axes.imshow(pixels, alpha=0.6)
        corner = box[:2] - box[2:] / 2
        axes.add_patch(Rectangle(corner.tolist(), *box[2:].tolist(), fill=False, color='0.2'))
        for deviation in (1, 2):
            axes.add_patch(
                Ellipse(
                    centers[head].tolist(),
                    *(2 * deviation * deviations[head]).tolist(),
                    fill=False,
                    linestyle='-' if deviation == 1 else ':',
                )
            )
        axes.plot(*centers[head], '+', color='black')
        for level, colour in zip(range(points.size(1)), COLOURS, strict=False):
            axes.scatter(
                *points[head, level].T,
                s=150 * shares[0, query, head, level],
                color=colour,
                label=f'stride {smca_dino.decoder.strides[level]}',
            )
        left, top = (corner - 0.4 * box[2:]).clamp(min=0).tolist()
        right, bottom = (corner + 1.4 * box[2:]).minimum(size).tolist()
        axes.set(xticks=[], yticks=[], xlim=(left, right), ylim=(bottom, top))
        axes.set_title(f'head {head}', fontsize=9)
    legend = figure.legend(*axes.get_legend_handles_labels(), loc='outside lower center', ncols=5)
    for handle in legend.legend_handles:
        handle.set_sizes([30])
    figure.savefig(FIGURE, dpi=110)


if __name__ == '__main__':
    main(*sys.argv[1:])
