"""Start SMCA from the weights of a DETR, a Deformable DETR, or an SMCA for other classes.

Tensors with the same role in both models are carried over. Those that only SMCA has (centres,
offsets, scales, scale selection) and those with a different meaning in the source start as the
config initialises them.
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from torch import Tensor

from mmsmca.errors import one_line

from .files import CheckpointError
from .names import DETR_NAMES, NAMES, coco_rows, new_name

# Prefixes of https://github.com/fundamentalvision/Deformable-DETR, and MMDetection's. There, norm1
# follows the cross-attention, not the self-attention.
DEFORMABLE_NAMES = (
    *DETR_NAMES,
    ('transformer.level_embed', 'level_embed'),
    ('input_proj.3.0.', 'neck.extra_convs.0.conv.'),
    ('input_proj.3.1.', 'neck.extra_convs.0.gn.'),
    ('input_proj.N.0.', 'neck.convs.N.conv.'),
    ('input_proj.N.1.', 'neck.convs.N.gn.'),
    ('transformer.encoder.layers.N.self_attn.', 'encoder.layers.N.self_attn.'),
    ('transformer.decoder.layers.N.cross_attn.', 'decoder.layers.N.cross_attn.'),
    ('transformer.decoder.layers.N.norm2.', 'decoder.layers.N.norms.0.'),
    ('transformer.decoder.layers.N.norm1.', 'decoder.layers.N.norms.1.'),
    ('transformer.reference_points.', 'reference_points_fc.'),
    ('class_embed.N.', 'bbox_head.cls_branches.N.'),
    ('bbox_embed.N.layers.0.', 'bbox_head.reg_branches.N.0.'),
    ('bbox_embed.N.layers.1.', 'bbox_head.reg_branches.N.2.'),
    ('bbox_embed.N.layers.2.', 'bbox_head.reg_branches.N.4.'),
)
# Names of the original implementations, by a tensor that only this one has.
ORIGINAL_NAMES = {
    'input_proj.weight': NAMES['single_scale'],  # Also DETR's.
    'input_proj_512.weight': NAMES['multi_scale_conv'],
    'input_proj.0.0.weight': DEFORMABLE_NAMES,
}
# A tensor that identifies a model, under MMDetection's names. SMCA comes first, as it may have
# those of the others, too.
SOURCES = {
    'SMCA': 'decoder.layers.0.spatial_prior.norm.weight',
    'DETR': 'decoder.layers.0.cross_attn.attn.in_proj_weight',
    'Deformable DETR': 'encoder.layers.0.self_attn.sampling_offsets.weight',
}
# Prefixes of what has another meaning in the source: in an SMCA, the classes; in DETR, classes and
# "no object" share a softmax, and boxes are relative to the image, not to the query's centre.
DIFFERENT = {
    'SMCA': ('bbox_head.fc_cls.',),
    'DETR': ('bbox_head.fc_cls.', 'bbox_head.fc_reg.'),
}
# Prefixes of the head of Deformable DETR's first decoder layer, and of our shared head.
HEAD = (
    ('bbox_head.cls_branches.0.', 'bbox_head.fc_cls.'),
    ('bbox_head.reg_branches.0.0.', 'bbox_head.reg_ffn.layers.0.0.'),
    ('bbox_head.reg_branches.0.2.', 'bbox_head.reg_ffn.layers.1.'),
    ('bbox_head.reg_branches.0.4.', 'bbox_head.fc_reg.'),
)
BRANCH = re.compile(r'bbox_head\.(cls|reg)_branches\.(\d+)\.')
# Parts whose tensors belong together: all of them are carried over, or none.
PARTS = re.compile(
    r'backbone|neck\.(?:extra_)?convs\.\d+|encoder\.layers\.\d+|bbox_head\.\w+'
    r'|decoder\.layers\.\d+\.(?:self_attn|cross_attn\.attn|ffn|norms)'
)


class WarmStart(NamedTuple):
    """What an SMCA starts with.

    Attributes:
        source: The model recognised, a key of :data:`SOURCES`.
        state_dict: Tensors carried over, under our names.
        fresh: Names of the model's other tensors, which start as the config initialises them.
    """

    source: str
    state_dict: dict[str, Tensor]
    fresh: list[str]


def model_tensors(config: str) -> dict[str, Tensor]:
    """Tensors of a config's SMCA, for names and shapes; ``init_cfg`` is ignored.

    Raises:
        CheckpointError: If the config's model is not an SMCA, or cannot be built.
    """
    register_all_modules()
    try:
        state_dict = MODELS.build(Config.fromfile(config).model).state_dict()
    except Exception as error:  # a config is Python code: anything can be wrong with it
        raise CheckpointError(
            f'the model of {config} cannot be built: {one_line(error)}'
        ) from error
    if 'decoder.center_head.layers.0.weight' not in state_dict:
        raise CheckpointError(f'the model of {config} is not an SMCA: specify the config of one')
    return state_dict


def warm_start(source: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> WarmStart:
    """Carry over what a DETR, Deformable DETR or other SMCA shares with an SMCA.

    A part of the model (the backbone, an encoder layer, the FFN of a decoder layer) is carried over
    as a whole, or not at all.

    Args:
        source: Tensors under the names of MMDetection (ours for SMCA) or of the original code.
        model: Tensors of the SMCA to start; only names and shapes matter.

    Raises:
        CheckpointError: If the source is none of these models, or nothing of it fits.
    """
    names = next((names for key, names in ORIGINAL_NAMES.items() if key in source), None)
    named = {new_name(k, names) if names else k: tensor for k, tensor in source.items()}
    kind = next((kind for kind, name in SOURCES.items() if name in named), None)
    if kind is None:
        raise CheckpointError(f'this is not one of the models to start from: {", ".join(SOURCES)}')
    candidates = {k: x for k, x in named.items() if k and not k.startswith(DIFFERENT.get(kind, ()))}
    if kind == 'Deformable DETR':
        candidates = from_deformable(candidates, len(model['bbox_head.fc_cls.bias']))
    elif 'neck.convs.1.conv.weight' not in candidates:
        # Single-scale models project only the last feature map of the backbone.
        last = (
            sum(bool(re.fullmatch(r'neck\.convs\.\d+\.conv\.weight', name)) for name in model) - 1
        )
        prefix = f'neck.convs.{last}.'
        candidates = {k.replace('neck.convs.0.', prefix): x for k, x in candidates.items()}
    theirs, ours = _shapes(candidates), _shapes(model)
    state_dict = {
        name: tensor
        for name, tensor in candidates.items()
        if name in model and theirs[_part(name)] == ours[_part(name)]
    }
    if not state_dict:
        raise CheckpointError(f'nothing in this {kind} fits the config')
    return WarmStart(kind, state_dict, [name for name in model if name not in state_dict])


def from_deformable(named: Mapping[str, Tensor], num_classes: int) -> dict[str, Tensor]:
    """Tensors of a Deformable DETR that have the same meaning in an SMCA, under our names."""
    candidates, refines = {}, False
    for name, tensor in named.items():
        branch = BRANCH.match(name)
        if branch and branch[2] != '0':
            first = named.get(BRANCH.sub(r'bbox_head.\1_branches.0.', name))
            refines |= first is None or not torch.equal(tensor, first)
        elif name == 'query_embedding.weight':
            # The other half is the initial content of the queries, which is zero in SMCA.
            candidates[name] = tensor[..., : tensor.size(-1) // 2].clone()
        elif branch and branch[1] == 'cls' and (len(tensor), num_classes) == (91, 80):
            candidates[new_name(name, HEAD) or name] = coco_rows(tensor)
        else:
            candidates[new_name(name, HEAD) or name] = tensor
    # With refinement, every layer has a head of its own; SMCA's layers share one.
    return {k: x for k, x in candidates.items() if not refines or not k.startswith('bbox_head.')}


def _part(name: str) -> str:
    match = PARTS.match(name)
    return match[0] if match else name.rpartition('.')[0] or name


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, torch.Size]]:
    """Shapes by part and name."""
    parts: dict[str, dict[str, torch.Size]] = {}
    for name, tensor in tensors.items():
        part = parts.setdefault(_part(name), {})
        # The frozen batch norms of the original implementations do not count batches.
        if not name.endswith('.num_batches_tracked'):
            part[name] = tensor.shape
    return parts
