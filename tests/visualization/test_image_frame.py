"""Cells are drawn where they lie in the image."""

from types import SimpleNamespace

import numpy as np
import torch

from mmsmca.visualization.image_frame import ImageFrame


def frame_of(strides, cell_place=0.0):
    """Frame of an image of half the size of the network's input."""
    inspection = SimpleNamespace(
        image=np.zeros((36, 52, 3), np.uint8),
        input_size=(104, 72),
        scale_factor=torch.tensor([2.0, 2.0]),
    )
    maps = SimpleNamespace(strides=strides, cell_place=cell_place)
    return ImageFrame(inspection, maps)


def test_cells_are_drawn_around_their_places():
    frame = frame_of((16, 32))
    fine, coarse = torch.zeros(5, 7), torch.zeros(3, 4)
    fine[1, 2], coarse[1, 0] = 1, 1
    rasters = frame.rasters([fine, coarse])
    # Half a fine cell per step: cell (2, 1) lies at pixel (32, 16), a square from 24 and 8 on.
    assert rasters.shape == (2, 9, 13)
    assert [list(i) for i in np.nonzero(rasters[0])] == [[1, 1, 2, 2], [3, 4, 3, 4]]
    rows, columns = np.nonzero(rasters[1])
    assert (set(rows), set(columns)) == ({2, 3, 4, 5}, {0, 1})
    # A coarse cell's weight is spread over four fine ones.
    assert frame.density([fine, coarse]).max() == 1
    assert frame.density([0 * fine, coarse]).max() == 0.25


def test_cells_of_a_box_tied_prior_begin_at_the_images_edge():
    frame = frame_of((16, 32), cell_place=0.5)
    fine, coarse = torch.zeros(5, 7), torch.zeros(3, 4)
    fine[1, 2], coarse[1, 0] = 1, 1
    rasters = frame.rasters([fine, coarse])
    # Cell (2, 1) is the square from pixel (32, 16) on.
    assert [list(i) for i in np.nonzero(rasters[0])] == [[2, 2, 3, 3], [4, 5, 4, 5]]
    rows, columns = np.nonzero(rasters[1])
    assert (set(rows), set(columns)) == ({4, 5, 6, 7}, {0, 1, 2, 3})
