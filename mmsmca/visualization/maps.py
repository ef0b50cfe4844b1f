"""Where queries look in one decoder layer: Gaussians of the prior, and attention weights."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor

from mmsmca.models.layers import attention
from mmsmca.models.layers.dino_decoder import SMCADINODecoderLayer
from mmsmca.models.layers.modulated_decoder import ModulatedDecoderLayer

Levels = list[Tensor]  # One tensor per level.


@dataclass(frozen=True, kw_only=True)
class Gaussians:
    """The spatial prior of Q queries, in pixels of the network's input.

    A Gaussian is exp(-(s_x dx)^2 - (s_y dy)^2 - (s_xy dx dy)^2), with d the distance from its peak.

    Attributes:
        centers: Centres (x, y) of the queries, (Q, 2).
        boxes: Boxes (x1, y1, x2, y2) that the Gaussians are tied to, (Q, 4), or None.
        peaks: Centres of the heads' Gaussians, (L, M, Q, 2). Gaussians tied to boxes are the same
            on all levels, so L is 1.
        scales: Scales s of the formula, (L, M, Q, 2) or (L, M, Q, 3).
        offsets: Peaks relative to the query's centre, in cells or, with boxes, in box sizes.
        widths: The paper's scales or, with boxes, standard deviations in box sizes; shape as
            ``scales``.
        level_weights: Weights that the gates give the levels for a Gaussian that is wide compared
            to their cells, (M, Q, levels), or None without boxes.
    """

    centers: Tensor
    peaks: Tensor
    scales: Tensor
    offsets: Tensor
    widths: Tensor
    boxes: Tensor | None = None
    level_weights: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class CoAttentionMaps:
    """Where Q queries of an image look in one decoder layer.

    Attributes:
        strides: Stride of every level, in pixels of the network's input.
        cell_place: Position of cell 0 of a level, in cells. Cell (x, y) lies at pixel
            (x + cell_place, y + cell_place) * stride.
        prior: The queries' Gaussians.
        gaussians: Their values at the cells, (M, Q, H_j, W_j) per level.
        weights: Attention weights, (M, Q, H_j, W_j) per level.
        unmodulated: Attention weights of the same queries and keys without the prior.
        level_weights: Factor of each level's result in the output, (M, Q, L).
        prior_shares: Share of the attention that each level gets from the prior alone, gates
            included, (M, Q, L).
    """

    strides: Sequence[float]
    cell_place: float
    prior: Gaussians
    gaussians: Levels
    weights: Levels
    unmodulated: Levels
    level_weights: Tensor
    prior_shares: Tensor

    @property
    def level_shares(self) -> Tensor:
        """Share of each level in the output, (M, Q, L)."""
        return self.level_weights * _level_sums(self.weights)

    def head_means(self, weights: Levels) -> Levels:
        """Mean over the heads for the first query, as in the layer's output.

        Args:
            weights: Attention weights of these queries, (M, Q, H_j, W_j) per level.

        Returns:
            (H_j, W_j) per level.
        """
        factors = self.level_weights[:, 0, :, None, None].unbind(1)
        return [(f * level[:, 0]).mean(0) for f, level in zip(factors, weights, strict=True)]


def layer_gaussians(layer: ModulatedDecoderLayer, given: dict, attended: dict) -> Gaussians:
    """Gaussians of the queries of an image.

    Args:
        layer: The decoder layer.
        given: Arguments of its forward pass, by name.
        attended: Arguments of its co-attention's forward pass.
    """
    strides = layer.spatial_prior.strides
    size = given['image_sizes'][0]
    if isinstance(layer, SMCADINODecoderLayer):
        prior: attention.Gaussians = attended['prior']
        # In finest cells, as in the prior: subtract exactly what it added.
        cells = given['boxes'][0] * (size / strides[0]).repeat(2)
        centers, sides = cells.split(2, dim=-1)
        level_sizes = 2 * torch.tensor(strides).log().to(size)
        gates = torch.zeros_like(level_sizes) if prior.gates is None else prior.gates[0]
        return Gaussians(
            centers=(centers * strides[0]).cpu(),
            boxes=(bbox_cxcywh_to_xyxy(cells) * strides[0]).cpu(),
            peaks=(prior.centers * strides[0]).cpu(),
            scales=(prior.precisions.sqrt() / strides[0]).cpu(),
            offsets=((prior.centers - centers) / sides).cpu(),
            widths=((0.5 / prior.precisions).sqrt() / sides).cpu(),
            level_weights=(gates - level_sizes)
            .softmax(-1)
            .expand(*prior.centers.shape[1:3], -1)
            .cpu(),
        )
    centers = given['centers'][0] * size
    levels = []
    betas = layer.spatial_prior.betas
    for level_prior, stride, beta in zip(attended['priors'], strides, betas, strict=True):
        peaks, factors = level_prior.centers[0], level_prior.precisions[0].sqrt()
        unit = centers.new_tensor([stride, stride, stride**2])
        scales, offsets = factors / unit[: factors.size(-1)], peaks - centers / stride
        widths = factors * beta**0.5
        levels.append(dict(peaks=peaks * stride, scales=scales, offsets=offsets, widths=widths))
    stacked = {name: torch.stack([level[name] for level in levels]).cpu() for name in levels[0]}
    return Gaussians(centers=centers.cpu(), **stacked)


def of_queries(arguments: dict, queries: Sequence[int]) -> dict:
    """Restrict the forward arguments of a layer or a co-attention to some queries."""
    chosen = dict(arguments)
    for name in ('query', 'query_pos', 'features', 'centers', 'boxes'):
        if name in chosen:
            chosen[name] = chosen[name][:, queries]
    if chosen.get('prior') is not None:
        chosen['prior'] = _prior_of_queries(chosen['prior'], queries)
    if 'priors' in chosen:
        chosen['priors'] = [_prior_of_queries(prior, queries) for prior in chosen['priors']]
    return chosen


def _prior_of_queries(prior: attention.Gaussians, queries: Sequence[int]) -> attention.Gaussians:
    centers, precisions, gates = prior
    if gates is not None:
        gates = gates[:, :, queries]
    return attention.Gaussians(centers[:, :, queries], precisions[:, :, queries], gates)


def layer_maps(layer: ModulatedDecoderLayer, given: dict, attended: dict) -> CoAttentionMaps:
    """Maps of a layer of SMCA or SMCA-DINO; arguments are those of :func:`layer_gaussians`."""
    strides, module = layer.spatial_prior.strides, layer.cross_attn
    names = inspect.signature(module.logits).parameters
    content, log_prior = module.logits(**{name: attended[name] for name in names})
    level_weights = content.new_ones(*content.shape[1:3], len(strides))
    if isinstance(layer, SMCADINODecoderLayer):
        # Cells of all levels share a softmax.
        grids, prior = [attended['grid']], attended['prior']
        log_gaussians = attention.log_prior(prior._replace(gates=None), grids[0])
    else:
        grids, log_gaussians = attended['grids'], log_prior
        level_weights = level_weights / len(strides)
        if module.scale_selection is not None:
            alpha = module.scale_selection(attended['features'][0]).softmax(-1)
            level_weights = alpha.expand_as(level_weights)
    level_weights = level_weights.cpu()
    return CoAttentionMaps(
        strides=strides,
        cell_place=0.5 if isinstance(layer, SMCADINODecoderLayer) else 0.0,
        weights=_softmax(content + log_prior, grids),
        level_weights=level_weights,
        prior=layer_gaussians(layer, given, attended),
        gaussians=_levels(log_gaussians.exp(), grids),
        unmodulated=_softmax(content, grids),
        prior_shares=level_weights * _level_sums(_softmax(log_prior, grids)),
    )


def _levels(values: Tensor, grids: Sequence[attention.Grid]) -> Levels:
    """Split (1, M, Q, N) into levels, (M, Q, H_j, W_j) each."""
    shapes = [shape for grid in grids for shape in grid.shapes]
    levels = values[0].split([height * width for height, width in shapes], dim=-1)
    return [level.unflatten(-1, shape).cpu() for level, shape in zip(levels, shapes, strict=True)]


def _softmax(logits: Tensor, grids: Sequence[attention.Grid]) -> Levels:
    """Attention weights of every level, with a softmax for each grid."""
    parts = logits.split([grid.coordinates.size(0) for grid in grids], dim=-1)
    weights = [
        attention.masked_softmax(part, grid.padding)
        for part, grid in zip(parts, grids, strict=True)
    ]
    return _levels(torch.cat(weights, dim=-1), grids)


def _level_sums(levels: Levels) -> Tensor:
    """Sum over the cells of every level, (M, Q, L)."""
    return torch.stack([level.sum(dim=(-2, -1)) for level in levels], dim=-1)
