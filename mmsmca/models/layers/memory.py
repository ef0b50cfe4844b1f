"""Feature levels as one sequence of cells, passed on by encoder, query selection and decoder."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class LevelCells(NamedTuple):
    """The cells of one level, as the priors need them.

    Attributes:
        shape: Height and width of the level, in cells.
        padding: True where a cell is padding, (B, H * W), or None. Defaults to None.
    """

    shape: tuple[int, int]
    padding: Tensor | None = None


class Memory(NamedTuple):
    """The cells of all levels, one level after the other, before or after the encoder.

    Attributes:
        cells: The cells, (B, N, C).
        pos: Their position encoding, (B, N, C).
        mask: True where a cell is padding, (B, N), or None.
        shapes: Height and width of every level, in cells.
    """

    cells: Tensor
    pos: Tensor
    mask: Tensor | None
    shapes: Sequence[tuple[int, int]]

    def sizes(self) -> list[int]:
        """Number of cells of every level."""
        return num_cells(self.shapes)

    def keys(self) -> Tensor:
        """Keys of the attention: cells plus their position encoding, (B, N, C)."""
        return self.cells + self.pos

    def levels(self) -> list[LevelCells]:
        """Shape and padding of every level."""
        return level_cells(self.shapes, self.mask)

    def encoded(self, cells: Tensor) -> 'Memory':
        """The same levels with new cells, (B, N, C)."""
        return Memory(cells, self.pos, self.mask, self.shapes)

    def from_level(self, first: int) -> 'Memory':
        """The levels from ``first`` on."""
        start = sum(self.sizes()[:first])
        mask = None if self.mask is None else self.mask[:, start:]
        return Memory(self.cells[:, start:], self.pos[:, start:], mask, self.shapes[first:])

    def maps(self) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        """Every level as a map.

        Returns:
            Cells and their position encodings, (B, C, H_j, W_j) each, and masks, (B, 1, H_j, W_j)
            or None each.
        """
        masks: list[Tensor | None] = [None] * len(self.shapes)
        if self.mask is not None:
            masks = [*unflatten_levels(self.mask.unsqueeze(-1), self.shapes)]
        cells, pos = [unflatten_levels(x, self.shapes) for x in (self.cells, self.pos)]
        return cells, pos, masks


def num_cells(shapes: Sequence[tuple[int, int]]) -> list[int]:
    """Number of cells of maps with the given heights and widths."""
    return [height * width for height, width in shapes]


def level_cells(shapes: Sequence[tuple[int, int]], mask: Tensor | None) -> list[LevelCells]:
    """Shape and padding of every level; arguments are those of :class:`Memory`."""
    masks = [None] * len(shapes) if mask is None else mask.split(num_cells(shapes), dim=1)
    return [LevelCells(*level) for level in zip(shapes, masks, strict=True)]


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Maps of (B, C, H_j, W_j) to (B, N, C)."""
    return torch.cat([x.flatten(2).transpose(1, 2) for x in maps], dim=1)


def unflatten_levels(x: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(B, N, C) to maps of (B, C, H_j, W_j), the inverse of :func:`flatten_levels`."""
    levels = x.split(num_cells(shapes), dim=1)
    return [
        level.transpose(1, 2).unflatten(2, shape)
        for level, shape in zip(levels, shapes, strict=True)
    ]
