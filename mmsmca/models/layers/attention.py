r"""Attention under Gaussian priors: SMCA attends to each level, SMCA-DINO to all levels at once.

.. math:: C = softmax(K^T Q / \sqrt{d} + \log G) V, \quad
    \log G(x) = g - \sum_{axes} a (x - c)^2

==========  ================================================================================
explicit    adds log G to the logits, as in the paper: the reference, for any prior
folded      writes log G as further channels of queries and keys, so that a fused kernel for
            plain attention computes it, and nothing of size Q x N is in memory
==========  ================================================================================

Along one axis, :math:`-a (x - c)^2 = (2 a c) x + (-a) x^2 + (-a c^2) 1`: a dot product of what the
query knows, (2 a c, -a, -a c^2), and what the cell knows, (x, x^2, 1). The last term is the same
for all cells, so the softmax cancels it. Numerical precision still needs it: without it, the logits
of the cells that matter are of the order of a c^2, thousands on a large map, and the gradient of a
multiplies their float32 rounding errors by c^2 again. For the same reason, coordinates are relative
to an origin near the query's centre, and half-precision inputs are computed in float32.
``docs/performance.md`` lists the errors.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from .precision import at_least_float32
from .projections import AttentionProjections, merge_heads, split_heads
from .values import check_choice, check_heads

# Logit that excludes a key from the softmax, whatever its prior.
PADDING = -1e9
SCALE_SELECTIONS = ('learned', 'uniform')


class Gaussians(NamedTuple):
    """Gaussian priors of all queries.

    Attributes:
        centers: Centres c, (x, y) in the grid's unit, (B, M, Q, 2).
        precisions: Factors a along x and y, (B, M, Q, 2); a third one, (B, M, Q, 3), is that of
            the product of both squares, which only ``explicit`` computes.
        gates: Terms g for the cells of each level, (B, M, Q, L). Defaults to None: zero.
    """

    centers: Tensor
    precisions: Tensor
    gates: Tensor | None = None


class Grid(NamedTuple):
    """The cells of one level or of several, one level after the other.

    Attributes:
        coordinates: Places (x, y) of the cells, (N, 2).
        padding: True where a cell is padding, (B, N), or None.
        levels: Index of each cell's level, (N,).
        shapes: Height and width of every level, in cells.
        origins: Origins of the coordinates in ``channels``, n along each axis, (B or 1, n, 2).
        channels: What the cells contribute to the folded prior, for all decoder layers: for every
            origin x, y, x² and y², then 1, a one-hot level but for the first, and, with padding, a
            logit that excludes it; (B or 1, 1, N, P).
    """

    coordinates: Tensor
    padding: Tensor | None
    levels: Tensor
    shapes: Sequence[tuple[int, int]]
    origins: Tensor
    channels: Tensor


def level_grids(
    shapes: Sequence[tuple[int, int]], padding: Tensor | None, like: Tensor
) -> list[Grid]:
    """Place the cells of every level in a grid of its own: x and y are 0, 1, ...

    Args:
        shapes: Height and width of every level, in cells.
        padding: True where a cell is padding, all levels in one sequence, (B, N), or None.
        like: Tensor that determines dtype and device, at least float32.
    """
    counts = [height * width for height, width in shapes]
    parts = [None] * len(shapes) if padding is None else padding.split(counts, dim=1)
    # With s = 6 and 96 cells, terms stay near 10,000.
    return [
        _place([shape], [1], like.new_tensor([shape[::-1]]), part, shift=0.0, reach=96)
        for shape, part in zip(shapes, parts, strict=True)
    ]


def common_grid(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    image_sizes: Tensor,
    padding: Tensor | None,
) -> Grid:
    """Place the cells of all levels in one grid, whose unit is the finest cell.

    Cell i of level j has its centre at (i + 0.5) r_j / r_1.

    Args:
        shapes: Height and width of every level, in cells.
        strides: Stride r of every level, in pixels.
        image_sizes: Width and height of each image's content, without padding, in pixels, (B, 2).
        padding: True where a cell is padding, (B, N), or None.
    """
    # 1,536 pixels at stride 8. As a is at most 2, for a box without area, terms stay below 20,000.
    return _place(shapes, strides, image_sizes / strides[0], padding, shift=0.5, reach=192)


def _place(
    shapes: Sequence[tuple[int, int]],
    strides: Sequence[int],
    sizes: Tensor,
    padding: Tensor | None,
    shift: float,
    reach: int,
) -> Grid:
    """Place cells, with origins all over ``sizes``, (B or 1, 2), one per ``reach`` finest cells."""
    coordinates, levels = [], []
    for level, ((height, width), stride) in enumerate(zip(shapes, strides, strict=True)):
        cells = cell_coordinates((height, width), sizes)
        coordinates.append((cells + shift) * (stride / strides[0]))
        levels.append(torch.full((height * width,), level, device=sizes.device))
    places, of_level = torch.cat(coordinates), torch.cat(levels)
    # A graph exported for maps of any size has one origin: only gradients need more.
    free = any(isinstance(side, torch.SymInt) for side in shapes[0])
    count = 1 if free else math.ceil(max(shapes[0]) / reach)
    middles = (torch.arange(count, device=sizes.device) + 0.5) / count
    origins = (sizes[:, None] * middles[:, None]).floor()
    x = places[:, None] - origins[:, None, None]
    channels = [x.flatten(-2), x.square().flatten(-2), torch.ones_like(x[..., 0, :1])]
    if len(shapes) > 1:  # OpenVINO's converter gives a tensor without channels one.
        gated = of_level[:, None] == torch.arange(1, len(shapes), device=sizes.device)
        channels.append(gated.to(sizes.dtype)[None, None].expand(x.size(0), -1, -1, -1))
    if padding is not None:
        channels = [part.expand(padding.size(0), -1, -1, -1) for part in channels]
        channels.append((padding * PADDING).to(sizes.dtype)[:, None, :, None])
    return Grid(places, padding, of_level, shapes, origins, torch.cat(channels, dim=-1))


def cell_coordinates(shape: tuple[int, int], like: Tensor) -> Tensor:
    """Coordinates (x, y) = 0, 1, ... of a level's cells, row by row, (H * W, 2)."""
    y, x = (torch.arange(side, dtype=like.dtype, device=like.device) for side in shape)
    return torch.stack(torch.meshgrid(x, y, indexing='xy'), dim=-1).flatten(0, 1)


def log_prior(prior: Gaussians, grid: Grid) -> Tensor:
    r"""Logarithm of every query's prior at every cell (paper, eq. 2), (B, M, Q, N).

    The paper divides by squared scales, the authors' code multiplies by them: a = s² / beta.
    """
    x2, y2 = (
        (axis - center).square()
        for axis, center in zip(
            grid.coordinates.unbind(-1), prior.centers.split(1, dim=-1), strict=True
        )
    )
    along_x, along_y, *both = prior.precisions.split(1, dim=-1)
    out = -(along_y * y2 + along_x * x2)
    for factor in both:
        out = out - factor * y2 * x2
    return out if prior.gates is None else out + prior.gates[..., grid.levels]


def explicit_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: Gaussians,
    grid: Grid,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention under priors, with log G and the attention weights in memory.

    Args:
        query: B images, M heads, Q queries, k channels per head: (B, M, Q, k).
        key: Keys of the grid's N cells, (B, M, N, k).
        value: (B, M, N, d).
        prior: Priors of the queries.
        grid: The cells.
        dropout_p: Probability that an attention weight is dropped. Defaults to 0.

    Returns:
        Tensor of shape (B, M, Q, d); zeros for an image whose cells are all padding.
    """
    weights = masked_softmax(content_logits(query, key) + log_prior(prior, grid), grid.padding)
    return _blank(F.dropout(weights, dropout_p).to(value.dtype) @ value, grid)


def folded_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    prior: Gaussians,
    grid: Grid,
    dropout_p: float = 0.0,
) -> Tensor:
    """Attention under priors, computed as plain attention, at least in float32.

    A half-precision kernel would round the gradients of the logits: they would no longer sum to
    zero over a query's keys, and the remainder would be multiplied by squared coordinates.

    Priors with three factors are left to :func:`explicit_attention`: folded, they are a polynomial
    of degree four with terms up to a million, whose error in float32 was 3e-3 to 3e-2.

    Args:
        query: B images, M heads, Q queries, k channels per head: (B, M, Q, k).
        key: Keys of the grid's N cells, (B, M, N, k).
        value: (B, M, N, d), d at most k plus the prior's channels.
        prior: Priors of the queries.
        grid: The cells.
        dropout_p: Probability that an attention weight is dropped. Defaults to 0.

    Returns:
        Tensor of shape (B, M, Q, d); zeros for an image whose cells are all padding.
    """
    if prior.precisions.size(-1) == 3:
        return explicit_attention(query, key, value, prior, grid, dropout_p)
    of_queries, of_keys, channels = query_channels(prior, grid), grid.channels, value.size(-1)
    # Fused kernels need a multiple of eight channels, and values as wide as keys.
    dtype, fill = of_queries.dtype, of_queries.new_zeros(())
    missing = -(query.size(-1) + of_keys.size(-1)) % 8
    with torch.autocast(query.device.type, enabled=False):
        # The prior comes first: its terms are large, but their sum, to which the content is added,
        # is small.
        query = query.to(dtype) / math.sqrt(query.size(-1))
        query, key = (
            torch.cat(
                [
                    prior_part.expand(*content.shape[:3], -1),
                    *([fill.expand(*content.shape[:3], missing)] if missing else []),
                    content,
                ],
                dim=-1,
            )
            for prior_part, content in ((of_queries, query), (of_keys, key))
        )
        wide = value.to(dtype)
        if channels < key.size(-1):
            nothing = fill.expand(*value.shape[:-1], key.size(-1) - channels)
            wide = torch.cat((wide, nothing), dim=-1)
        out = F.scaled_dot_product_attention(query, key, wide, dropout_p=dropout_p, scale=1.0)
    return _blank(out[..., :channels].to(value.dtype), grid)


def query_channels(prior: Gaussians, grid: Grid) -> Tensor:
    """What the queries contribute to the folded prior, (B, M, Q, P).

    Their dot product with ``grid.channels`` is :func:`log_prior` minus the gate of the first level,
    as only differences between gates matter. A query uses the channels of the nearest origin only.
    """
    centers, a = at_least_float32(prior.centers), at_least_float32(prior.precisions).unsqueeze(-2)
    offsets, count = centers.unsqueeze(-2) - grid.origins[:, None, None], grid.origins.size(1)
    if count > 1:
        nearest = offsets.abs().argmin(-2, keepdim=True)
        a = a * (nearest == torch.arange(count, device=nearest.device)[:, None])
    constant = -(a * offsets.square()).sum((-2, -1))[..., None]
    channels = [(2 * a * offsets).flatten(-2), (-a).expand_as(offsets).flatten(-2), constant]
    if len(grid.shapes) > 1:
        gates = prior.gates
        if gates is None:
            gates = constant.new_zeros(*constant.shape[:-1], len(grid.shapes))
        channels.append(gates[..., 1:] - gates[..., :1])
    if grid.padding is not None:
        channels.append(torch.ones_like(constant))
    return torch.cat(channels, dim=-1)


def num_prior_channels(num_levels: int) -> int:
    """Channels per head of the folded prior and the padding.

    There are two per axis, one for both, L - 1 gates, and one for the padding. Images larger than
    the area of an origin take more, which do not come out of the content's.
    """
    return 5 + num_levels


def plain_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    padding: Tensor | None,
    dropout_p: float = 0.0,
    attn_mask: Tensor | None = None,
) -> Tensor:
    """Attention without priors.

    Args:
        query: (B, M, Q, k).
        key: (B, M, N, k).
        value: (B, M, N, k).
        padding: True where a key is padding, (B, N), or None. If all keys of an image are padding,
            its output is finite but meaningless.
        dropout_p: Probability that an attention weight is dropped. Defaults to 0.
        attn_mask: True where a query must not see a key, (Q, N); excludes ``padding``. Every query
            must see some key. Defaults to None.

    Returns:
        Tensor of shape (B, M, Q, k).
    """
    mask = None if attn_mask is None else ~attn_mask
    if padding is not None:
        # Not every PyTorch version supports a softmax over no keys, forward and backward.
        mask = (~padding | padding.all(dim=1, keepdim=True))[:, None, None]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=mask, dropout_p=dropout_p)


def content_logits(query: Tensor, key: Tensor) -> Tensor:
    """Logits of plain attention, (B, M, Q, N), from (B, M, Q, k) and (B, M, N, k)."""
    return query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))


def masked_softmax(logits: Tensor, padding: Tensor | None) -> Tensor:
    """Softmax of (B, M, Q, N) over the keys that are not padding, (B, N).

    If all keys of an image are padding, its weights are finite but meaningless.
    """
    if padding is not None:
        # A finite fill keeps the softmax of a fully padded row, and its gradient, finite.
        logits = logits.masked_fill(padding[:, None, None], torch.finfo(logits.dtype).min)
    return logits.softmax(-1)


def _blank(out: Tensor, grid: Grid) -> Tensor:
    """Set the output for images whose cells are all padding to zero."""
    if grid.padding is None:
        return out
    return out.masked_fill(grid.padding.all(dim=1)[:, None, None, None], 0.0)


IMPLEMENTATIONS = {'explicit': explicit_attention, 'folded': folded_attention}


@MODELS.register_module()
class CoAttention(BaseModule):
    r"""SMCA's co-attention under Gaussian priors, with a residual connection.

    Each level has its own softmax, and each query weights the levels (scale selection):

    .. math::

        C = \sum_j \alpha_j \, softmax(K_j^T Q / \sqrt{d} + \log G_j) V_j, \quad
        \alpha = softmax(W u)

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M; must divide the channels. Defaults to 8.
        dropout: Dropout probability of attention weights and of the output. Defaults to 0.
        implementation: ``folded`` or ``explicit``, see :mod:`.attention`. Defaults to ``folded``.
        num_levels: Number of feature levels. Defaults to 1.
        scale_selection: Weights of the levels: ``learned`` (alpha, shared by the heads) or
            ``uniform`` (1 / L). No effect with a single level. Defaults to ``learned``.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``, or ``implementation`` or
            ``scale_selection`` is unknown.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        dropout: float = 0.0,
        implementation: str = 'folded',
        num_levels: int = 1,
        scale_selection: str = 'learned',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_choice('cross_attn_cfg.implementation', implementation, IMPLEMENTATIONS)
        check_choice('cross_attn_cfg.scale_selection', scale_selection, SCALE_SELECTIONS)
        self.num_heads = num_heads
        self.implementation = implementation
        self.scale_selection = None
        if scale_selection == 'learned' and num_levels > 1:
            self.scale_selection = nn.Linear(embed_dims, num_levels)
        self.attn = AttentionProjections(embed_dims, num_heads)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key: Tensor,
        value: Tensor,
        priors: Sequence[Gaussians],
        grids: Sequence[Grid],
        features: Tensor,
    ) -> Tensor:
        """Attend from the queries to the cells of every level.

        Args:
            query: (B, Q, C).
            query_pos: Query embedding, (B, Q, C).
            key: Tokens of all levels, concatenated, plus their position encoding, (B, N, C).
            value: The same tokens without position encoding, (B, N, C).
            priors: Gaussian priors of the queries, one per level.
            grids: The cells of every level.
            features: Prior features u, (B, Q, C).

        Returns:
            ``query`` plus the co-attention's output, (B, Q, C).
        """
        q = self.attn.query(query + query_pos)
        counts = [grid.coordinates.size(0) for grid in grids]
        k, v = (x.split(counts, dim=2) for x in (self.attn.key(key), self.attn.value(value)))
        attend, dropout_p = IMPLEMENTATIONS[self.implementation], self.dropout.p * self.training
        levels = [attend(q, *level, dropout_p) for level in zip(k, v, priors, grids, strict=True)]
        if self.scale_selection is not None:
            alpha = self.scale_selection(features).softmax(-1)[:, None].split(1, dim=-1)
            levels = [x * weight for x, weight in zip(levels, alpha, strict=True)]
        out = sum(levels[1:], levels[0])
        if self.scale_selection is None and len(levels) > 1:
            out = out / len(levels)
        return query + self.dropout(self.attn.output(out))

    def logits(
        self,
        query: Tensor,
        query_pos: Tensor,
        key: Tensor,
        priors: Sequence[Gaussians],
        grids: Sequence[Grid],
    ) -> tuple[Tensor, Tensor]:
        """Compute the attention logits, which :meth:`forward` need not materialise.

        Arguments are those of :meth:`forward`.

        Returns:
            Content logits and the log prior that is added to them, (B, M, Q, N) each.
        """
        content = content_logits(self.attn.query(query + query_pos), self.attn.key(key))
        return content, torch.cat([*map(log_prior, priors, grids)], dim=-1)


@MODELS.register_module()
class AllLevelsCoAttention(BaseModule):
    r"""SMCA-DINO's co-attention to the cells of all levels at once, with a residual connection.

    .. math:: C = softmax(K^T Q / \sqrt{k} + \log G) V, \quad \text{over the cells of all levels}

    The folded prior and the padding take 5 + L of the d = C / M channels of each head; the other k
    are left for the content of queries and keys. So the attention costs as much as plain attention.

    The content logits start at zero: at first, attention only pools under the Gaussians.

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M; must divide the channels. Defaults to 8.
        num_levels: Number of feature levels L. Defaults to 4.
        dropout: Dropout probability of attention weights and of the output. Defaults to 0.
        implementation: ``folded`` or ``explicit``, see :mod:`.attention`. Defaults to ``folded``.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``, a head has no channels left for
            the content, or ``implementation`` is unknown.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        dropout: float = 0.0,
        implementation: str = 'folded',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        check_heads(embed_dims, num_heads, 'cross_attn_cfg.')
        content = embed_dims // num_heads - num_prior_channels(num_levels)
        if content < 1:
            raise ValueError(
                f'cross_attn_cfg.num_heads={num_heads} leaves each head {embed_dims // num_heads} '
                f'channels, of which the prior over {num_levels} levels takes '
                f'{num_prior_channels(num_levels)}: use fewer heads or more embed_dims'
            )
        check_choice('cross_attn_cfg.implementation', implementation, IMPLEMENTATIONS)
        self.num_heads = num_heads
        self.implementation = implementation
        self.query_proj = nn.Linear(embed_dims, num_heads * content)
        self.key_proj = nn.Linear(embed_dims, num_heads * content)
        self.value_proj = nn.Linear(embed_dims, embed_dims)
        self.output_proj = nn.Linear(embed_dims, embed_dims)
        self.dropout = nn.Dropout(dropout)
        self.init_weights()

    def init_weights(self) -> None:
        """Start with content logits of zero, and other projections as in Deformable DETR."""
        for linear in (self.key_proj, self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)
        nn.init.zeros_(self.query_proj.weight)
        nn.init.zeros_(self.query_proj.bias)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key: Tensor,
        value: Tensor,
        prior: Gaussians,
        grid: Grid,
    ) -> Tensor:
        """Attend from the queries to the cells of all levels.

        Args:
            query: (B, Q, C).
            query_pos: Position encoding of the queries, (B, Q, C).
            key: Tokens of all levels, concatenated, plus their position encoding, (B, N, C).
            value: The same tokens without position encoding, (B, N, C).
            prior: Priors of the queries.
            grid: The cells of all levels.

        Returns:
            ``query`` plus the co-attention's output, (B, Q, C).
        """
        projected = self.query_proj(query + query_pos), self.key_proj(key), self.value_proj(value)
        q, k, v = (split_heads(x, self.num_heads) for x in projected)
        attend, dropout_p = IMPLEMENTATIONS[self.implementation], self.dropout.p * self.training
        out = attend(q, k, v, prior, grid, dropout_p)
        return query + self.dropout(self.output_proj(merge_heads(out)))

    def logits(
        self, query: Tensor, query_pos: Tensor, key: Tensor, prior: Gaussians, grid: Grid
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`CoAttention.logits`, with the arguments of :meth:`forward`."""
        q = split_heads(self.query_proj(query + query_pos), self.num_heads)
        k = split_heads(self.key_proj(key), self.num_heads)
        return content_logits(q, k), log_prior(prior, grid)


@MODELS.register_module()
class PlainCoAttention(BaseModule):
    r"""DETR's co-attention over the cells of all levels, with a residual connection.

    .. math:: C = softmax(K^T Q / \sqrt{d}) V, \quad \text{over the cells of all levels}

    A decoder layer without a spatial prior has it: all channels of a head are for the content, and
    the initialisation is DETR's.

    Args:
        embed_dims: Channels C. Defaults to 256.
        num_heads: Heads M; must divide the channels. Defaults to 8.
        num_levels: Unused, as content logits do not depend on levels. Defaults to 4.
        dropout: Dropout probability of attention weights and of the output. Defaults to 0.
        init_cfg: MMEngine's initialisation config. Defaults to None.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dims``.
    """

    def __init__(
        self,
        embed_dims: int = 256,
        num_heads: int = 8,
        num_levels: int = 4,
        dropout: float = 0.0,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg=init_cfg)
        self.num_heads = num_heads
        self.attn = AttentionProjections(embed_dims, num_heads)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        query: Tensor,
        query_pos: Tensor,
        key: Tensor,
        value: Tensor,
        prior: None,
        grid: Grid,
    ) -> Tensor:
        """Attend as :meth:`AllLevelsCoAttention.forward`, without a prior."""
        q, k = self.attn.query(query + query_pos), self.attn.key(key)
        dropout_p = self.dropout.p * self.training
        out = plain_attention(q, k, self.attn.value(value), grid.padding, dropout_p)
        return query + self.dropout(self.attn.output(out))
