"""Queries of DINO's kind for a refined two-stage Deformable DETR.

The content and the position of its queries are projections of the proposals, the same in all
layers. DINO learns contents, and encodes the box of every layer with ``ref_point_head``. Its
outputs also pass a norm.
"""

from collections.abc import Iterable

import torch
from mmdet.models.detectors import DeformableDETR
from mmdet.models.layers import coordinate_to_encoding

from mmsmca.models.detectors.smca_dino import SMCADINO

from .from_dino import observing, run_dino
from .ridge import Ridge


@torch.no_grad()
def fit_queries(
    detr: DeformableDETR, smca_dino: SMCADINO, batches: Iterable[dict]
) -> tuple[float, float]:
    """Fit contents, ``ref_point_head`` and the decoder's norm.

    Args:
        detr: Detector in evaluation mode.
        smca_dino: Detector whose layers are set.
        batches: Batches of images.

    Returns:
        Share of the squared contents that their mean does not explain, and of the variance of the
        positions that the boxes do not.
    """
    decoder = smca_dino.decoder
    first, last = decoder.ref_point_head.layers
    fit = Ridge(first.in_features, last.out_features)
    content = torch.zeros_like(smca_dino.query_embedding.weight[0])
    total, square, deviation, mean = content.new_zeros(4)
    with observing(detr) as layers:
        for batch in batches:
            seen: dict = {}
            with detr.decoder.register_forward_hook(
                lambda module, args, kwargs, out, seen=seen: seen.update(kwargs, out=out[0]),
                with_kwargs=True,
            ):
                *_, weights = run_dino(detr, batch)
            for layer in layers:
                encoding = coordinate_to_encoding(layer['boxes'], num_feats=smca_dino.embed_dims)
                fit.add(encoding, layer['query_pos'], weights)
            share = weights[..., None]
            content = content + (share * seen['query']).sum((0, 1))
            square += (share * seen['query'].square()).sum()
            # A normalised vector times its deviation plus its mean is the vector.
            deviation += (weights * seen['out'].std(-1, correction=0)).sum()
            mean += (weights * seen['out'].mean(-1)).sum()
            total += weights.sum()
    content = content / total
    smca_dino.query_embedding.weight.copy_(content.expand_as(smca_dino.query_embedding.weight))
    decoder.norm.weight.fill_(deviation / total / len(layers))
    decoder.norm.bias.fill_(mean / total / len(layers))
    weight, bias = fit.solve(torch.zeros_like(first.weight), torch.zeros_like(last.bias))
    # Encodings are in [-1, 1]: with this bias, no hidden unit is negative, and the MLP is linear.
    shift = weight.abs().sum(1)
    first.weight.copy_(weight)
    first.bias.copy_(shift)
    last.weight.copy_(torch.eye(len(weight)))
    last.bias.copy_(bias - shift)
    left = 1 - total * content.square().sum() / square
    return left.item(), fit.unexplained(weight, bias)
