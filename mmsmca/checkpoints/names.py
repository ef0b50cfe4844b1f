"""Conversion of checkpoints between the tensor names of the paper's authors and ours.

Every tensor of one has a counterpart in the other; :data:`NAMES` is the complete mapping.
"""

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from mmsmca.errors import shorten

from .classes import CLASSIFIER
from .files import CheckpointError

# Prefixes (reference, ours); N stands for a layer index. First those shared with DETR.
DETR_NAMES = (
    ('backbone.0.body.', 'backbone.'),
    ('query_embed.', 'query_embedding.'),
    ('transformer.encoder.layers.N.linear1.', 'encoder.layers.N.ffn.layers.0.0.'),
    ('transformer.encoder.layers.N.linear2.', 'encoder.layers.N.ffn.layers.1.'),
    ('transformer.encoder.layers.N.norm1.', 'encoder.layers.N.norms.0.'),
    ('transformer.encoder.layers.N.norm2.', 'encoder.layers.N.norms.1.'),
    ('transformer.decoder.layers.N.self_attn.', 'decoder.layers.N.self_attn.attn.'),
    ('transformer.decoder.layers.N.linear1.', 'decoder.layers.N.ffn.layers.0.0.'),
    ('transformer.decoder.layers.N.linear2.', 'decoder.layers.N.ffn.layers.1.'),
    ('transformer.decoder.layers.N.norm3.', 'decoder.layers.N.norms.2.'),
)
COMMON_NAMES = (
    *DETR_NAMES,
    ('transformer.decoder.layers.N.multihead_attn.', 'decoder.layers.N.cross_attn.attn.'),
    ('transformer.decoder.layers.N.norm1.', 'decoder.layers.N.norms.0.'),
    ('transformer.decoder.layers.N.norm2.', 'decoder.layers.N.norms.1.'),
    ('transformer.decoder.layers.N.norm4.', 'decoder.layers.N.spatial_prior.norm.'),
    ('transformer.decoder.layers.0.point1.', 'decoder.center_head.'),
    ('transformer.decoder.layers.N.point2.', 'decoder.layers.N.spatial_prior.offsets.'),
    ('transformer.decoder.layers.N.point3.', 'decoder.layers.N.spatial_prior.scales.'),
    ('transformer.decoder.norm.', 'decoder.post_norm.'),
    ('class_embed.', 'bbox_head.fc_cls.'),
    ('bbox_embed.layers.0.', 'bbox_head.reg_ffn.layers.0.0.'),
    ('bbox_embed.layers.1.', 'bbox_head.reg_ffn.layers.1.'),
    ('bbox_embed.layers.2.', 'bbox_head.fc_reg.'),
)
NAMES = {
    'single_scale': (
        *COMMON_NAMES,
        ('input_proj.', 'neck.convs.0.conv.'),
        ('transformer.encoder.layers.N.self_attn.', 'encoder.layers.N.self_attn.attn.'),
    ),
    'multi_scale_conv': (
        *COMMON_NAMES,
        ('input_proj_512.', 'neck.convs.0.conv.'),
        ('input_proj_1024.', 'neck.convs.1.conv.'),
        ('input_proj_2048.', 'neck.convs.2.conv.'),
        ('input_proj_2048_3.', 'neck.extra_convs.0.conv.'),
        ('transformer.level_embed', 'level_embed'),
        ('transformer.encoder.layers.N.conv_1.', 'encoder.layers.N.project_in.'),
        ('transformer.encoder.layers.N.conv_2.', 'encoder.layers.N.project_out.'),
        ('transformer.encoder.layers.N.self_attn_8.', 'encoder.layers.N.same.0.'),
        ('transformer.encoder.layers.N.self_attn_16.', 'encoder.layers.N.same.1.'),
        ('transformer.encoder.layers.N.self_attn_32.', 'encoder.layers.N.same.2.'),
        ('transformer.encoder.layers.N.self_attn_64.', 'encoder.layers.N.same.3.'),
        ('transformer.encoder.layers.N.high_to_low_1.', 'encoder.layers.N.down.0.'),
        ('transformer.encoder.layers.N.high_to_low_2.', 'encoder.layers.N.down.1.'),
        ('transformer.encoder.layers.N.high_to_low_3.', 'encoder.layers.N.down.2.'),
        ('transformer.encoder.layers.N.low_to_high_1.', 'encoder.layers.N.up.0.'),
        ('transformer.encoder.layers.N.low_to_high_2.', 'encoder.layers.N.up.1.'),
        ('transformer.encoder.layers.N.low_to_high_3.', 'encoder.layers.N.up.2.'),
        ('transformer.conv.', 'encoder.halve.'),
        ('transformer.decoder.layers.N.point4.', 'decoder.layers.N.cross_attn.scale_selection.'),
    ),
}
# Fixed scales have no parameters.
OPTIONAL = ('transformer.decoder.layers.N.point3.', 'decoder.layers.N.spatial_prior.scales.')

# Ids of COCO's 80 categories, in the order of MMDetection's classes: 1 to 90 with gaps.
COCO_CATEGORY_IDS = tuple(
    i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)


def is_reference(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether tensors have the names of the reference implementation rather than ours."""
    return any(name.startswith('transformer.') for name in state_dict)


def architecture_of(state_dict: Mapping[str, Tensor]) -> str:
    """Recognise the architecture of a reference state dict, a key of :data:`NAMES`.

    Raises:
        CheckpointError: If it is not a known SMCA of the authors, or is incomplete.
    """
    projections = {'single_scale': 'input_proj.weight', 'multi_scale_conv': 'input_proj_512.weight'}
    found = [name for name, projection in projections.items() if projection in state_dict]
    if not found or not any('.norm4.' in name for name in state_dict):
        raise CheckpointError(
            "this is not one of the authors' SMCA models, single-scale or convolutional "
            'multi-scale: it lacks their input_proj or the norm4 of their decoder layers'
        )
    _check_complete(state_dict, [reference for reference, _ in NAMES[found[0]]])
    return found[0]


def convert_reference(
    state_dict: Mapping[str, Tensor], num_classes: int | None = None
) -> dict[str, Tensor]:
    """Rename a reference state dict to ours.

    Args:
        state_dict: Tensors under their reference names.
        num_classes: 80 keeps only the rows of COCO's 80 categories, in MMDetection's order, of the
            classifier's 92 rows. Defaults to None: all rows, row k being COCO category id k.

    Raises:
        CheckpointError: If a tensor has no counterpart or is missing, or ``num_classes`` does not
            fit the classifier.
    """
    converted = rename(state_dict, NAMES[architecture_of(state_dict)])
    if num_classes is not None:
        rows = _classifier_rows(converted)
        if (num_classes, rows) != (len(COCO_CATEGORY_IDS), 92):
            raise CheckpointError(
                f'num_classes={num_classes} with a classifier of {rows} rows: only the 92 rows of '
                "COCO category ids can be mapped, to MMDetection's 80 classes"
            )
        for name in filter(CLASSIFIER.search, converted):
            converted[name] = coco_rows(converted[name])
    return converted


def convert_to_reference(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename our state dict to the reference's: the inverse of :func:`convert_reference`.

    Raises:
        CheckpointError: If the authors have not released the architecture, a tensor is missing or
            has no counterpart, or ``num_classes`` has reduced the classifier.
    """
    if not any('.spatial_prior.' in name for name in state_dict):
        raise CheckpointError("this is neither our SMCA nor the authors': it has no spatial_prior")
    architecture = 'multi_scale_conv' if 'encoder.halve.weight' in state_dict else 'single_scale'
    if architecture == 'single_scale' and 'level_embed' in state_dict:
        raise CheckpointError(
            'the authors have no names for this architecture: they released the single-scale '
            'model and the multi-scale model with the convolutional encoder (SMCAConvEncoder); '
            'this one has several levels with another encoder'
        )
    _check_complete(state_dict, [ours for _, ours in NAMES[architecture]])
    rows = _classifier_rows(state_dict)
    if rows == len(COCO_CATEGORY_IDS):
        raise CheckpointError(
            f'the classifier has {rows} rows, in the order of the COCO classes of MMDetection; the '
            "authors' code has 92, by COCO category id, 12 of which would have to be made up. To "
            'go back to their names, convert their checkpoint without --num-classes'
        )
    return rename(state_dict, [(ours, reference) for reference, ours in NAMES[architecture]])


def coco_rows(tensor: Tensor) -> Tensor:
    """Of 91 rows or more by category id, those of COCO's 80, in MMDetection's order."""
    return tensor[torch.tensor(COCO_CATEGORY_IDS)]


def rename(state_dict: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Replace the prefixes (from, to) of all names; ``N`` in a prefix stands for a layer index.

    Raises:
        CheckpointError: If a name begins with none of the prefixes.
    """
    unplaced = [name for name in state_dict if new_name(name, names) is None]
    if unplaced:
        raise CheckpointError(f'tensors without a counterpart: {shorten(unplaced)}')
    return {str(new_name(name, names)): tensor for name, tensor in state_dict.items()}


def new_name(name: str, names: Sequence[tuple[str, str]]) -> str | None:
    """Name of one tensor with its prefix replaced as in :func:`rename`; None if no prefix fits."""
    for old, new in names:
        if match := re.match(re.escape(old).replace('N', r'(\d+)'), name):
            number = match[1] if match.groups() else ''
            return new.replace('N', number) + name[match.end() :]
    return None


def _num_layers(state_dict: Mapping[str, Tensor], part: str) -> int:
    """Number of layers of the encoder or decoder, under the reference's names or ours."""
    pattern = re.compile(rf'(?:transformer\.)?{part}\.layers\.(\d+)\.')
    numbers = [int(match[1]) for name in state_dict if (match := pattern.match(name))]
    return max(numbers, default=-1) + 1


def _check_complete(state_dict: Mapping[str, Tensor], prefixes: Sequence[str]) -> None:
    """Refuse a state dict in which some layer has no tensor under one of the prefixes."""
    numbered: list[str] = []
    for prefix in prefixes:
        part = 'encoder' if 'encoder.' in prefix else 'decoder'
        layers = range(max(_num_layers(state_dict, part), 1))
        if prefix not in OPTIONAL:
            numbered += dict.fromkeys(prefix.replace('.N.', f'.{n}.') for n in layers)
    missing = [p for p in numbered if not any(name.startswith(p) for name in state_dict)]
    if missing:
        raise CheckpointError(f'tensors are missing under: {shorten(missing)}')


def _classifier_rows(state_dict: Mapping[str, Tensor]) -> int:
    """Number of rows of the classifier, under our names."""
    shapes = [state_dict[name].shape for name in filter(CLASSIFIER.search, state_dict)]
    return max((shape[:1].numel() for shape in shapes), default=0)
