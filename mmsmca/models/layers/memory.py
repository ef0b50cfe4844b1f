"""Feature levels as one sequence of tokens, passed on by encoder, query selection and decoder."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Memory(NamedTuple):
    """The cells of all levels, one level after the other, before or after the encoder.

    Attributes:
        tokens: Features of the cells, (B, N, C).
        pos: Their position encoding, (B, N, C).
        padding: True where a cell is padding, (B, N), or None.
        shapes: Height and width of every level, in cells.
    """

    tokens: Tensor
    pos: Tensor
    padding: Tensor | None
    shapes: Sequence[tuple[int, int]]

    def counts(self) -> list[int]:
        """Number of cells of every level."""
        return [height * width for height, width in self.shapes]

    def keys(self) -> Tensor:
        """Keys of the attention: tokens plus their position encoding, (B, N, C)."""
        return self.tokens + self.pos

    def encoded(self, tokens: Tensor) -> 'Memory':
        """The same levels with new tokens, (B, N, C)."""
        return self._replace(tokens=tokens)

    def from_level(self, first: int) -> 'Memory':
        """The levels from ``first`` on."""
        start = sum(self.counts()[:first])
        padding = None if self.padding is None else self.padding[:, start:]
        return Memory(self.tokens[:, start:], self.pos[:, start:], padding, self.shapes[first:])

    def maps(self) -> tuple[list[Tensor], list[Tensor], list[Tensor | None]]:
        """Every level as a map.

        Returns:
            Tokens and their position encodings, (B, C, H_j, W_j) each, and padding,
            (B, 1, H_j, W_j) or None each.
        """
        tokens, pos = (unflatten_levels(x, self.shapes) for x in (self.tokens, self.pos))
        return tokens, pos, padding_maps(self.padding, self.shapes)


def padding_maps(padding: Tensor | None, shapes: Sequence[tuple[int, int]]) -> list[Tensor | None]:
    """Padding of every level, (B, 1, H_j, W_j) or None each; arguments as in :class:`Memory`."""
    if padding is None:
        return [None] * len(shapes)
    return [*unflatten_levels(padding.unsqueeze(-1), shapes)]


def flatten_levels(maps: Sequence[Tensor]) -> Tensor:
    """Maps of (B, C, H_j, W_j) to (B, N, C)."""
    return torch.cat([x.permute(0, 2, 3, 1).flatten(1, 2) for x in maps], dim=1)


def unflatten_levels(x: Tensor, shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(B, N, C) to maps of (B, C, H_j, W_j), the inverse of :func:`flatten_levels`."""
    levels = x.split([height * width for height, width in shapes], dim=1)
    return [
        level.unflatten(1, shape).permute(0, 3, 1, 2)
        for level, shape in zip(levels, shapes, strict=True)
    ]
