"""A trained DINO as an SMCA-DINO: weights carried over, priors and output projections fitted.

Only images are needed, no annotations. The decoder runs once over them to fit the priors to the
moments of DINO's sampling (:mod:`.sampling`), and once to fit every output projection to the output
of DINO's attention, given the values that the fitted priors pool. If the SMCA-DINO has another
encoder, that learns in between to imitate DINO's (:mod:`.imitation`).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmdet.models.detectors import DINO, DeformableDETR
from torch import Tensor, nn

from mmsmca.errors import ConfigError, shorten
from mmsmca.models.detectors.smca_dino import SMCADINO
from mmsmca.models.layers.box_prior import BoxPrior
from mmsmca.models.layers.deformable_encoder import SMCADeformableEncoder

from .ridge import Ridge
from .sampling import moments, sampled_points

NAMES = 'DINO', 'SMCA-DINO'
# Weight of a query without a detection; a query counts by its score otherwise.
LEAST_WEIGHT = 0.02
# A weight that Deformable DETR has and DINO lacks.
PROPOSALS = 'pos_trans_fc.weight'
# Inputs of the linear layers of a decoder layer, (B, Q, C), and their targets by name.
Sample = tuple[Tensor, dict[str, Tensor]]


def check_models(dino: Any, smca_dino: Any) -> None:
    """Refuse what cannot be converted.

    Args:
        dino: Detector to convert.
        smca_dino: Detector to write.

    Raises:
        ConfigError: If ``dino`` is no DINO, ``smca_dino`` no SMCA-DINO with gated priors, or they
            differ in layers, heads, levels, channels, queries, classes or normalisation.
    """
    # DDQ and Grounding DINO inherit from DINO.
    if type(dino) is not DINO and not has_proposals(dino):
        raise ConfigError(
            f'a {type(dino).__name__} of this config cannot be converted, only a DINO or a refined '
            'two-stage Deformable DETR: their decoders refine boxes and sample around them. For '
            'other detectors, see tools/convert_checkpoint.py --warm-start.'
        )
    if not (
        isinstance(smca_dino, SMCADINO)
        and smca_dino.as_two_stage
        and all(
            isinstance(layer.spatial_prior, BoxPrior)
            and layer.spatial_prior.gates is not None
            and list(layer.spatial_prior.strides) == list(smca_dino.strides)
            for layer in smca_dino.decoder.layers
        )
    ):
        raise ConfigError(
            '--to must name a config of a two-stage SMCADINO whose priors are BoxPrior, gated, '
            'and whose layers all attend to all levels of the neck, such as '
            'configs/smca_dino/smca-dino_r50_8xb2-12e_coco.py'
        )
    check_same(dino, smca_dino)


def check_same(source: Any, target: Any) -> None:
    """Refuse detectors that differ in what a conversion does not change.

    Args:
        source: Detector to convert.
        target: Detector to write.

    Raises:
        ConfigError: If they differ in layers, heads, levels, channels, queries, classes,
            normalisation or, with the same encoder, in the position encoding.
    """
    compared = {
        'layers': lambda d: len(d.decoder.layers),
        'heads': lambda d: d.decoder.layers[0].cross_attn.num_heads,
        'levels': lambda d: len(d.level_embed),
        'channels': lambda d: d.embed_dims,
        'queries': lambda d: d.num_queries,
        'classes': lambda d: d.bbox_head.num_classes,
        'as data_preprocessor': _normalisation,
    }
    if same_encoder(target):  # Another encoder imitates the outputs, whatever its inputs are.
        compared['as positional_encoding'] = _encoding
    for name, of in compared.items():
        if of(source) != of(target):
            raise ConfigError(
                f'the trained detector has {of(source)} {name} and the config of --to has '
                f'{of(target)}: choose or change the latter'
            )


def _normalisation(detector: Any) -> dict:
    preprocessor = detector.data_preprocessor
    numbers = {
        key: getattr(preprocessor, key).flatten().tolist()
        for key in ('mean', 'std')
        if hasattr(preprocessor, key)
    }
    return dict(numbers, swapped=preprocessor._channel_conversion)


def _encoding(detector: Any) -> dict:
    return {
        key: getattr(detector.positional_encoding, key)
        for key in ('num_feats', 'temperature', 'normalize', 'scale', 'offset')
    }


def has_proposals(detector: Any) -> bool:
    """Whether a detector is a refined two-stage Deformable DETR: see :mod:`.proposals`."""
    return type(detector) is DeformableDETR and detector.as_two_stage and detector.with_box_refine


def same_encoder(smca_dino: Any) -> bool:
    """Whether the SMCA-DINO has DINO's own encoder, so that nothing has to be imitated."""
    return isinstance(smca_dino.encoder, SMCADeformableEncoder)


def carry_over(
    tensors: Mapping[str, Tensor],
    smca_dino: Any,
    fitted: Sequence[str] = ('.spatial_prior.', '.query_proj.', '.key_proj.'),
) -> list[str]:
    """Load the weights that both detectors have under the same names.

    Args:
        tensors: State dict of the DINO.
        smca_dino: Detector whose weights are set.
        fitted: Parts of the names of tensors that need not be loaded. Defaults to priors and
            content.

    Returns:
        Names of the tensors that are not loaded: those of the priors, of the content part of the
        co-attention and, unless it is DINO's, of the encoder.

    Raises:
        ConfigError: If a tensor that both have has another shape, or others are missing.
    """
    own = smca_dino.state_dict()
    carried = {name: x for name, x in tensors.items() if name in own}
    if not same_encoder(smca_dino):
        carried = {name: x for name, x in carried.items() if not name.startswith('encoder.')}
    differ = [name for name, x in carried.items() if x.shape != own[name].shape]
    if differ:
        name = differ[0]
        raise ConfigError(
            f'{shorten(differ)} differ in shape: {name} is {tuple(tensors[name].shape)} in the '
            f'trained detector and {tuple(own[name].shape)} in the config of --to'
        )
    fresh = [name for name in own if name not in carried]
    if PROPOSALS in tensors:
        extra = ('query_embedding.', '.ref_point_head.', 'decoder.norm.', 'dn_query_generator.')
        fitted = (*fitted, *extra)
    missing = [
        name
        for name in fresh
        if not any(part in name for part in fitted)
        and (same_encoder(smca_dino) or not name.startswith('encoder.'))
    ]
    if missing:
        raise ConfigError(
            f'the trained detector lacks {shorten(missing)}, which the config of --to needs: '
            'backbone, neck and head must be the same'
        )
    smca_dino.load_state_dict(carried, strict=False)
    return fresh


def current_names(tensors: Mapping[str, Tensor], dino: DINO) -> dict[str, Tensor]:
    """Bring weights to the form of DINO in the installed MMDetection, with the same outputs.

    MMDetection 3 published DINO with 2 C inputs of ``ref_point_head``; later distributions have
    4 C, whose frequencies include the former, so zeros for the others give the same outputs.
    Deformable DETR scores proposals by the first class alone, DINO by the best one.

    Args:
        tensors: Weights of a DINO, in either form, or of a Deformable DETR.
        dino: Detector of the installed MMDetection.

    Returns:
        The weights for ``dino``.
    """
    tensors = dict(tensors)
    if PROPOSALS in tensors:
        for kind in ('weight', 'bias'):
            name = f'bbox_head.cls_branches.{len(dino.decoder.layers)}.{kind}'
            tensors[name] = tensors[name][:1].repeat_interleave(len(tensors[name]), dim=0)
    name = 'decoder.ref_point_head.layers.0.weight'
    weight, wanted = tensors.get(name), dino.state_dict().get(name)
    if weight is None or wanted is None or 2 * weight.size(1) != wanted.size(1):
        return tensors
    # Of every coordinate: pairs of sine and cosine, at half of the frequencies.
    tensors[name] = torch.stack(
        (pairs := weight.unflatten(1, (-1, 2)), torch.zeros_like(pairs)), dim=2
    ).flatten(1)
    return tensors


@contextmanager
def observing(dino: DINO) -> Iterator[list[dict[str, Tensor]]]:
    """Record what every decoder layer of a DINO sees and gives in a forward pass.

    Yields:
        For every layer its input ``before`` the self-attention, ``query``, ``query_pos`` and
        ``out``, the cross-attention's output without the residual, (B, Q, C) each, and ``boxes``,
        (B, Q, 4), or points, (B, Q, 2), in [0, 1] of the image content.
    """
    layers: list[dict[str, Tensor]] = [{} for _ in dino.decoder.layers]

    def observe(
        layer: dict, module: nn.Module, args: tuple, kwargs: dict[str, Any], out: Tensor
    ) -> None:
        padded, ratios = kwargs['reference_points'][:, :, 0], kwargs['valid_ratios'][:, :1]
        layer.update(
            query=kwargs['query'],
            query_pos=kwargs['query_pos'],
            boxes=padded / ratios.repeat(1, 1, padded.size(-1) // 2),
            out=out - kwargs['query'],
        )

    with ExitStack() as stack:
        for layer, record in zip(dino.decoder.layers, layers, strict=True):
            for handle in (
                layer.cross_attn.register_forward_hook(
                    lambda *call, record=record: observe(record, *call), with_kwargs=True
                ),
                layer.register_forward_pre_hook(
                    lambda module, args, record=record: record.update(before=args[0])
                ),
            ):
                stack.enter_context(handle)
        yield layers


def run_dino(dino: DINO, batch: dict) -> tuple[Any, Any, Tensor]:
    """Run a DINO on a batch.

    Args:
        dino: Detector in evaluation mode.
        batch: What a data loader gives.

    Returns:
        Maps of the neck, data samples, and weights of the queries: their largest score, at least
        ``LEAST_WEIGHT``, (B, Q).
    """
    data = dino.data_preprocessor(batch)
    maps, samples = dino.extract_feat(data['inputs']), data['data_samples']
    outputs = dino.forward_transformer(maps, samples)
    scores = dino.bbox_head(**outputs)[0][-1].sigmoid().amax(-1)
    return maps, samples, scores + LEAST_WEIGHT


@torch.no_grad()
def fit_priors(dino: DINO, smca_dino: SMCADINO, batches: Iterable[dict]) -> list[dict[str, float]]:
    """Fit the priors of all layers to the moments of DINO's sampling.

    Args:
        dino: Detector in evaluation mode.
        smca_dino: Detector whose priors are set.
        batches: Batches of images.

    Returns:
        Share of the variance of ``offsets``, ``widths`` and ``gates`` that is not explained by the
        query, for every layer.
    """
    names = ('offsets', 'widths', 'gates')

    def samples(layers: list[dict[str, Tensor]]) -> Iterator[Sample]:
        for layer, seen in zip(dino.decoder.layers, layers, strict=True):
            features = seen['query'] + seen['query_pos']
            points = sampled_points(layer.cross_attn, features)
            targets = (x.flatten(2) for x in moments(*points, smca_dino.decoder.strides))
            yield features, dict(zip(names, targets, strict=True))

    linears = [
        {name: getattr(layer.spatial_prior, name) for name in names}
        for layer in smca_dino.decoder.layers
    ]
    return fit_layers(linears, dino, batches, samples)


def fit_layers(
    linears: list[dict[str, nn.Linear]],
    dino: DINO,
    batches: Iterable[dict],
    samples: Callable[[list[dict[str, Tensor]]], Iterable[Sample]],
) -> list[dict[str, float]]:
    """Fit the linear layers of all decoder layers to what a detector shows on images.

    Args:
        linears: For every decoder layer, the linear layers by name.
        dino: Detector in evaluation mode.
        batches: Batches of images.
        samples: Inputs and targets of every decoder layer, from what :func:`observing` records.

    Returns:
        Share of the variance of the targets that is not explained, for every decoder layer.
    """
    fits = [
        {name: Ridge(linear.in_features, linear.out_features) for name, linear in layer.items()}
        for layer in linears
    ]
    with observing(dino) as layers:
        for batch in batches:
            *_, weights = run_dino(dino, batch)
            for fit, (features, targets) in zip(fits, samples(layers), strict=True):
                for name, target in targets.items():
                    fit[name].add(features, target, weights)
    return [
        {name: solve(fit[name], linear, zero=True) for name, linear in layer.items()}
        for layer, fit in zip(linears, fits, strict=True)
    ]


@torch.no_grad()
def fit_outputs(dino: DINO, smca_dino: SMCADINO, batches: Iterable[dict]) -> list[dict[str, float]]:
    """Fit the output projections of all layers to the output of DINO's attention.

    The layers of the SMCA-DINO get DINO's queries and boxes, and their own encoder's cells.

    Args:
        dino: Detector in evaluation mode.
        smca_dino: Detector in evaluation mode, whose output projections are set.
        batches: Batches of images.

    Returns:
        Share of the output's variance that is not explained ``before`` and ``after`` the fit, for
        every layer.
    """
    projections = [layer.cross_attn.output_proj for layer in smca_dino.decoder.layers]
    fits = [Ridge(linear.in_features, linear.out_features) for linear in projections]
    with observing(dino) as layers:
        for batch in batches:
            maps, samples, weights = run_dino(dino, batch)
            with _as_dino(smca_dino, layers) as pooled:
                smca_dino.forward_transformer(maps, samples)
            for seen, values, fit in zip(layers, pooled, fits, strict=True):
                fit.add(values['pooled'], seen['out'], weights)
    return [*map(refit, fits, projections)]


@contextmanager
def _as_dino(
    smca_dino: SMCADINO, layers: list[dict[str, Tensor]]
) -> Iterator[list[dict[str, Tensor]]]:
    """Give every layer DINO's queries and boxes, and record what its attention pools."""
    pooled: list[dict[str, Tensor]] = [{} for _ in layers]

    with ExitStack() as stack:
        for layer, seen, values in zip(smca_dino.decoder.layers, layers, pooled, strict=True):
            for handle in (
                layer.cross_attn.register_forward_pre_hook(
                    lambda module, args, seen=seen: (seen['query'], seen['query_pos'], *args[2:])
                ),
                layer.spatial_prior.register_forward_pre_hook(
                    lambda module, args, seen=seen: (
                        seen['query'] + seen['query_pos'],
                        seen['boxes'],
                        *args[2:],
                    )
                ),
                layer.cross_attn.output_proj.register_forward_pre_hook(
                    lambda module, args, values=values: values.update(pooled=args[0])
                ),
            ):
                stack.enter_context(handle)
        yield pooled


def refit(fit: Ridge, linear: nn.Linear) -> dict[str, float]:
    """Change a linear layer to the fit; the unexplained shares ``before`` and ``after``."""
    before = fit.unexplained(linear.weight, linear.bias)
    return dict(before=before, after=solve(fit, linear))


def solve(fit: Ridge, linear: nn.Linear, zero: bool = False) -> float:
    """Set a linear layer to the fit, drawn towards it or to zero; the unexplained share."""
    start = linear.weight, linear.bias
    weight, bias = fit.solve(*(map(torch.zeros_like, start) if zero else start))
    linear.weight.copy_(weight)
    linear.bias.copy_(bias)
    return fit.unexplained(weight, bias)
