"""A trained one-stage Deformable DETR as an SMCA, by the steps of :mod:`.from_dino`.

Two things differ in SMCA. Its queries start at zero, not at learned contents. And a layer predicts
its priors from its input, before the self-attention.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from mmdet.models.detectors import DeformableDETR
from torch import Tensor

from mmsmca.checkpoints.warm_start import from_deformable
from mmsmca.errors import ConfigError
from mmsmca.models.detectors.smca_detr import SMCADETR

from . import from_dino
from .from_dino import Sample, check_same, observing, run_dino
from .ridge import Ridge
from .sampling import level_moments, sampled_points

NAMES = 'Deformable DETR', 'SMCA'


def check_models(detr: Any, smca: Any) -> None:
    """Refuse what cannot be converted.

    Args:
        detr: Detector to convert.
        smca: Detector to write.

    Raises:
        ConfigError: If ``detr`` is no Deformable DETR with one stage and without refinement,
            ``smca`` no multi-scale SMCA as in the paper, or they differ in layers, heads, levels,
            channels, queries, classes or normalisation.
    """
    if type(detr) is not DeformableDETR or detr.as_two_stage or detr.with_box_refine:
        raise ConfigError(
            f'a {type(detr).__name__} of this config cannot be converted into an SMCA, only a '
            'Deformable DETR with one stage and without refinement. For other detectors, see '
            'tools/convert_checkpoint.py --warm-start.'
        )
    if smca.decoder.refine or not all(
        layer.cross_attn.scale_selection is not None
        and layer.spatial_prior.offsets is not None
        and layer.spatial_prior.num_scales == 2
        and list(layer.strides) == list(smca.strides)
        for layer in smca.decoder.layers
    ):
        raise ConfigError(
            '--to must name a config of an SMCADETR with scale selection, independent scales and '
            'all levels of the neck, without refinement'
        )
    check_same(detr, smca)


def carry_over(tensors: Mapping[str, Tensor], smca: SMCADETR) -> list[str]:
    """Load the weights that both detectors have, and predict the centres as reference points.

    Args:
        tensors: State dict of the Deformable DETR.
        smca: Detector whose weights are set.

    Returns:
        Names of the tensors that are not loaded.

    Raises:
        ConfigError: If a tensor that both have has another shape, or others are missing.
    """
    named, decoder = from_deformable(tensors, smca.bbox_head.num_classes), smca.decoder
    for i, layer in enumerate(decoder.layers):
        prefix = f'decoder.layers.{i}.cross_attn.'
        # The logits of the content start at zero.
        query, key, _ = layer.cross_attn.attn.in_proj_weight.detach().chunk(3)
        zeros = torch.zeros_like(query)
        for kind, rows in (('weight', (zeros, key)), ('bias', (zeros[0], zeros[0]))):
            value = named.pop(f'{prefix}value_proj.{kind}')
            named[f'{prefix}attn.in_proj_{kind}'] = torch.cat((*rows, value.to(query)))
            named[f'{prefix}attn.out_proj.{kind}'] = named.pop(f'{prefix}output_proj.{kind}')
    # The head's norm: of a normalised vector times w plus b, this is about the mean and deviation.
    last = f'decoder.layers.{len(decoder.layers) - 1}.norms.2.'
    weight, bias = named[f'{last}weight'], named[f'{last}bias']
    deviation = (weight.square().mean() + bias.var(correction=0)).sqrt()
    named['decoder.post_norm.weight'] = deviation.expand_as(weight)
    named['decoder.post_norm.bias'] = bias.mean().expand_as(bias)
    fresh = from_dino.carry_over(
        named, smca, fitted=('.spatial_prior.', '.scale_selection.', 'center_head.')
    )
    _fit_centers(smca, tensors['reference_points_fc.weight'], tensors['reference_points_fc.bias'])
    return fresh


@torch.no_grad()
def _fit_centers(smca: SMCADETR, weight: Tensor, bias: Tensor) -> None:
    """Set the MLP of the centres to the reference points of the queries, by least squares."""
    positions = smca.query_embedding.weight
    logits = positions @ weight.to(positions).T + bias.to(positions)
    features = smca.decoder.layers[0].spatial_prior.features(torch.zeros_like(positions), positions)
    rows = torch.cat((features, torch.ones_like(features[:, :1])), dim=1)
    solution = torch.linalg.lstsq(rows.double(), logits.double(), driver='gelsd').solution
    solution = solution.to(positions)
    first, second, last = smca.decoder.center_head.layers
    # With this shift, the first two hidden units are never negative, and the MLP is linear.
    shift = -(rows @ solution).amin(0).clamp(max=0) + 1
    first.weight[:2], first.bias[:2] = solution[:-1].T, solution[-1] + shift
    second.weight[:2], second.bias[:2] = torch.eye(2, len(positions[0])), 0
    last.weight.copy_(torch.eye(2, len(positions[0])))
    last.bias.copy_(-shift)


def _inputs(layers: list[dict[str, Tensor]]) -> list[Tensor]:
    """Inputs of SMCA's layers: zeros, then those of Deformable DETR."""
    return [torch.zeros_like(layers[0]['before']), *(layer['before'] for layer in layers[1:])]


@torch.no_grad()
def fit_priors(
    detr: DeformableDETR, smca: SMCADETR, batches: Iterable[dict]
) -> list[dict[str, float]]:
    """Fit the priors of all layers to the moments of Deformable DETR's sampling.

    Args:
        detr: Detector in evaluation mode.
        smca: Detector whose priors are set.
        batches: Batches of images.

    Returns:
        Share of the variance of ``offsets``, ``scales`` and ``scale_selection`` that is not
        explained by the query, for every layer.
    """

    def samples(layers: list[dict[str, Tensor]]) -> Iterator[Sample]:
        for theirs, own, seen, query in zip(
            detr.decoder.layers, smca.decoder.layers, layers, _inputs(layers), strict=True
        ):
            points = sampled_points(
                theirs.cross_attn, seen['query'] + seen['query_pos'], boxes=False
            )
            prior = own.spatial_prior
            features = prior.features(query, seen['query_pos'])
            yield features, level_moments(*points, prior.betas)

    linears = [
        dict(
            offsets=layer.spatial_prior.offsets,
            scales=layer.spatial_prior.scales,
            scale_selection=layer.cross_attn.scale_selection,
        )
        for layer in smca.decoder.layers
    ]
    return from_dino.fit_layers(linears, detr, batches, samples)


@torch.no_grad()
def fit_outputs(
    detr: DeformableDETR, smca: SMCADETR, batches: Iterable[dict]
) -> list[dict[str, float]]:
    """Fit the output projections of all layers, so that queries become Deformable DETR's.

    Every layer but the first gets Deformable DETR's queries; the first one's queries are SMCA's.

    Args:
        detr: Detector in evaluation mode.
        smca: Detector in evaluation mode, whose output projections are set.
        batches: Batches of images.

    Returns:
        Share of the output's variance that is not explained ``before`` and ``after`` the fit, for
        every layer.
    """
    projections = [layer.cross_attn.attn.out_proj for layer in smca.decoder.layers]
    fits = [Ridge(linear.in_features, linear.out_features) for linear in projections]
    with observing(detr) as layers:
        for batch in batches:
            maps, samples, weights = run_dino(detr, batch)
            records: list[dict[str, Tensor]] = [{} for _ in layers]
            with ExitStack() as stack:
                for layer, query, record in zip(
                    smca.decoder.layers, _inputs(layers), records, strict=True
                ):
                    for handle in (
                        layer.register_forward_pre_hook(
                            lambda module, args, query=query: (query, *args[1:])
                        ),
                        layer.cross_attn.register_forward_pre_hook(
                            lambda module, args, record=record: record.update(query=args[0])
                        ),
                        layer.cross_attn.attn.out_proj.register_forward_pre_hook(
                            lambda module, args, record=record: record.update(pooled=args[0])
                        ),
                    ):
                        stack.enter_context(handle)
                smca.forward_transformer(maps, samples)
            for seen, record, fit in zip(layers, records, fits, strict=True):
                fit.add(record['pooled'], seen['query'] + seen['out'] - record['query'], weights)
    return [*map(from_dino.refit, fits, projections)]
