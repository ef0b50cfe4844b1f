"""Draw the kinds of spatial prior: ``python docs/draw_priors.py`` writes docs/figures/priors.*."""

import math
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use('agg')
from matplotlib import pyplot as plt  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.image import AxesImage  # noqa: E402

from mmsmca.models.layers.attention import Gaussians, level_grids, log_prior  # noqa: E402
from mmsmca.models.layers.spatial_prior import SpatialPrior  # noqa: E402

FIGURE = Path(__file__).parent / 'figures' / 'priors'
STRIDE, CELLS = 32, 21
CENTER = 0.5 * CELLS  # in cells, of the query
# Offsets of four heads from the query's centre, in cells, and their scales: made up.
HEAD_OFFSETS = ((-4.0, -3.5), (3.5, -4.5), (-3.0, 4.5), (5.0, 2.5))
HEAD_SCALES = ((1.0, 1.0), (0.7, 1.6), (1.6, 0.7), (1.2, 1.2))
COLOURS = ('#0072B2', '#D55E00', '#009E73', '#CC79A7')
HALF = math.log(0.5)
FINE = 8  # points a cell, of lines


def predict(scale: str, scales: tuple, offsets: tuple | None = None) -> Gaussians:
    """The prior of one query in the middle of a square image, for given scales and offsets.

    Args:
        scale: Kind of the scales.
        scales: Scales of one head, or of each.
        offsets: Offsets of every head in cells. Defaults to None: head-shared.

    Returns:
        What :class:`SpatialPrior` gives whose layers predict those.
    """
    heads = 1 if offsets is None else len(offsets)
    prior = SpatialPrior(
        embed_dims=4,
        num_heads=heads,
        strides=(STRIDE,),
        scale=scale,
        head_shared=offsets is None,
    )
    if offsets is not None:
        prior.offsets.bias.data = torch.tensor(offsets).flatten()
    if scale != 'fixed':
        prior.scales.bias.data = torch.tensor(scales).flatten()
    side = float(STRIDE * CELLS)
    with torch.no_grad():
        return prior(
            torch.zeros(1, 1, 4), torch.full((1, 1, 2), 0.5), torch.tensor([[side, side]])
        )[0]


def log_priors(prior: Gaussians, cells: int = CELLS) -> torch.Tensor:
    """Logarithm of every head's prior, (M, cells, cells)."""
    (grid,) = level_grids([(cells, cells)], None, prior.centers)
    return log_prior(prior, grid).view(-1, cells, cells)


def draw_prior(axes: Axes, prior: Gaussians) -> AxesImage:
    """Draw a prior as an image, with the line where it is a half."""
    (image,) = log_priors(prior)
    draw_lines(axes, prior, COLOURS[1:2])
    return axes.imshow(image.exp(), cmap='Blues', vmin=0, vmax=1)


def draw_heads(axes: Axes, prior: Gaussians) -> None:
    """Draw every head's prior as the line where it is a half, and its centre."""
    draw_lines(axes, prior, COLOURS)
    for center, colour in zip(prior.centers[0, :, 0], COLOURS, strict=True):
        axes.plot(*center, '.', color=colour, markersize=8)


def draw_lines(axes: Axes, prior: Gaussians, colours: Sequence[str]) -> None:
    """Draw the lines on which the heads' priors are a half, on cells of a fraction of the size."""
    points = np.arange(CELLS * FINE) / FINE
    # A term of degree n in the distance is divided by the n-th power of FINE.
    unit = prior.centers.new_tensor((FINE**2, FINE**2, FINE**4))[: prior.precisions.size(-1)]
    finer = prior._replace(centers=prior.centers * FINE, precisions=prior.precisions / unit)
    for line, colour in zip(log_priors(finer, len(points)), colours, strict=True):
        axes.contour(points, points, line, [HALF], colors=colour, linestyles='solid')


def main() -> None:
    """Draw and save the figure."""
    single = (
        ('fixed: s = 1', predict('fixed', ())),
        ('isotropic: s = 0.6', predict('isotropic', (0.6,))),
        ('independent: $s_x$ = 0.4, $s_y$ = 1', predict('independent', (0.4, 1.0))),
        (
            'covariance: $s_x$ = $s_y$ = 0.4, $s_{xy}$ = 0.3',
            predict('covariance', (0.4, 0.4, 0.3)),
        ),
        ('head-shared: one for all heads', predict('independent', (0.4, 0.7))),
    )
    plt.rcParams.update({'font.size': 10, 'svg.hashsalt': 'mmsmca'})
    figure, grid = plt.subplots(2, 3, figsize=(9, 5.7), layout='constrained')
    for axes, (title, prior) in zip(grid.flat, single, strict=False):
        image = draw_prior(axes, prior)
        axes.set_title(title, fontsize=10)
    draw_heads(grid.flat[-1], predict('independent', HEAD_SCALES, HEAD_OFFSETS))
    grid.flat[-1].set_title('per head: offset and scales each', fontsize=10)
    for axes in grid.flat:
        axes.plot(CENTER, CENTER, '+', color='black', markersize=10, markeredgewidth=1.5)
        axes.set(xlim=(-0.5, CELLS - 0.5), ylim=(CELLS - 0.5, -0.5), aspect='equal')
        axes.set(xticks=range(0, CELLS, 5), yticks=range(0, CELLS, 5))
    for axes in grid[-1]:
        axes.set_xlabel('cells')
    for axes in grid[:, 0]:
        axes.set_ylabel('cells')
    figure.colorbar(image, ax=grid, label='prior G', shrink=0.6, pad=0.02)
    for suffix, metadata in (('png', None), ('svg', {'Date': None})):
        figure.savefig(FIGURE.with_suffix(f'.{suffix}'), dpi=100, metadata=metadata)


if __name__ == '__main__':
    main()
