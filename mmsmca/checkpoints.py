"""Checkpoints of the paper's authors in our names.

The reference implementation stores ``{"model": state_dict}``. Every tensor has one place in ours;
:data:`NAMES` is the whole dictionary.
"""

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from .version import __version__

# Prefixes (reference, ours); N stands for the number of a layer.
COMMON_NAMES = (
    ('backbone.0.body.', 'backbone.'),
    ('query_embed.', 'query_embedding.'),
    ('transformer.encoder.layers.N.linear1.', 'encoder.layers.N.ffn.layers.0.0.'),
    ('transformer.encoder.layers.N.linear2.', 'encoder.layers.N.ffn.layers.1.'),
    ('transformer.encoder.layers.N.norm1.', 'encoder.layers.N.norms.0.'),
    ('transformer.encoder.layers.N.norm2.', 'encoder.layers.N.norms.1.'),
    ('transformer.decoder.layers.N.self_attn.', 'decoder.layers.N.self_attn.attn.'),
    ('transformer.decoder.layers.N.multihead_attn.', 'decoder.layers.N.cross_attn.attn.'),
    ('transformer.decoder.layers.N.linear1.', 'decoder.layers.N.ffn.layers.0.0.'),
    ('transformer.decoder.layers.N.linear2.', 'decoder.layers.N.ffn.layers.1.'),
    ('transformer.decoder.layers.N.norm1.', 'decoder.layers.N.norms.0.'),
    ('transformer.decoder.layers.N.norm2.', 'decoder.layers.N.norms.1.'),
    ('transformer.decoder.layers.N.norm3.', 'decoder.layers.N.norms.2.'),
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
OPTIONAL = 'transformer.decoder.layers.N.point3.'

# Ids of COCO's 80 categories, in the order of MMDetection's classes: 1 to 90 with gaps.
COCO_CATEGORY_IDS = tuple(
    i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)
)


class CheckpointError(ValueError):
    """A checkpoint that cannot be read or converted; the message says why and what to do."""


def load_reference(path: str | Path) -> dict[str, Tensor]:
    """Read the state dict of a reference checkpoint, executing nothing that it holds.

    Args:
        path: File with ``{"model": state_dict}``, as the authors' code writes it.

    Returns:
        Tensors under their reference names.

    Raises:
        CheckpointError: If the file is missing, unreadable, or holds something else.
    """
    if not Path(path).is_file():
        raise CheckpointError(f'{path}: no such file')
    try:
        # The authors' training script stores its command line beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # the unpickler raises anything on bytes that are no checkpoint
        raise CheckpointError(
            f'{path} cannot be read as a checkpoint of tensors: it is truncated, '
            'of another format, or holds code, which is never executed '
            f'({type(error).__name__})'
        ) from error
    state_dict = checkpoint.get('model') if isinstance(checkpoint, Mapping) else None
    if not isinstance(state_dict, Mapping) or not all(
        isinstance(value, Tensor) for value in state_dict.values()
    ):
        raise CheckpointError(
            f'{path} holds no tensors under "model": it is not a checkpoint of the authors\' code'
        )
    return dict(state_dict)


def describe_reference(state_dict: Mapping[str, Tensor]) -> dict[str, int | str]:
    """Recognise the architecture of a reference state dict from its names and shapes.

    Args:
        state_dict: Tensors under their reference names.

    Returns:
        ``architecture`` (a key of :data:`NAMES`), ``encoder_layers``, ``decoder_layers``,
        ``num_queries``, ``num_classes``, ``embed_dims``, ``feedforward_channels``, ``num_heads``
        and ``scale`` as in our configs.

    Raises:
        CheckpointError: If it is not an SMCA of the authors that we know, or not all of one.
    """
    projections = {'single_scale': 'input_proj.weight', 'multi_scale_conv': 'input_proj_512.weight'}
    found = [name for name, projection in projections.items() if projection in state_dict]
    if not found or not any('.norm4.' in name for name in state_dict):
        raise CheckpointError(
            'this is no SMCA of the authors, neither single-scale nor convolutional multi-scale: '
            'it lacks their input_proj or the norm4 of their decoder layers'
        )
    architecture = found[0]
    layers = {
        part: 1
        + max(
            (
                int(m[1])
                for name in state_dict
                if (m := re.match(rf'transformer\.{part}\.layers\.(\d+)\.', name))
            ),
            default=-1,
        )
        for part in ('encoder', 'decoder')
    }
    missing = [
        prefix
        for reference, _ in NAMES[architecture]
        if reference != OPTIONAL
        for prefix in _numbered(reference, layers)
        if not any(name.startswith(prefix) for name in state_dict)
    ]
    if missing:
        raise CheckpointError(f'tensors are missing under: {", ".join(missing)}')
    layer = 'transformer.decoder.layers.0'
    levels = len(state_dict.get(f'{layer}.point4.bias', [None]))
    num_heads = len(state_dict[f'{layer}.point2.bias']) // levels // 2
    num_scales = len(state_dict.get(f'{layer}.point3.bias', ())) // levels // num_heads
    num_queries, embed_dims = state_dict['query_embed.weight'].shape
    return dict(
        architecture=architecture,
        encoder_layers=layers['encoder'],
        decoder_layers=layers['decoder'],
        num_queries=num_queries,
        num_classes=state_dict['class_embed.weight'].size(0),
        embed_dims=embed_dims,
        feedforward_channels=len(state_dict[f'{layer}.linear1.bias']),
        num_heads=num_heads,
        scale=('fixed', 'isotropic', 'independent', 'covariance')[num_scales],
    )


def convert_reference(
    state_dict: Mapping[str, Tensor], num_classes: int | None = None
) -> dict[str, Tensor]:
    """Rename a reference state dict to ours.

    Args:
        state_dict: Tensors under their reference names.
        num_classes: 80 keeps, of the 92 rows of the classifier, those of COCO's 80 categories in
            MMDetection's order. Defaults to None: all rows, row k being COCO category id k.

    Returns:
        The same tensors under our names.

    Raises:
        CheckpointError: If a tensor has no place in ours, one is missing, or ``num_classes`` does
            not fit the classifier.
    """
    names = NAMES[describe_reference(state_dict)['architecture']]
    converted, unplaced = {}, []
    for name, tensor in state_dict.items():
        our_name = _rename(name, names)
        if our_name is None:
            unplaced.append(name)
        else:
            converted[our_name] = tensor
    if unplaced:
        raise CheckpointError(f'no place for: {", ".join(unplaced)}')
    if num_classes is not None:
        rows = converted['bbox_head.fc_cls.weight'].size(0)
        if (num_classes, rows) != (len(COCO_CATEGORY_IDS), 92):
            raise CheckpointError(
                f'num_classes={num_classes} with a classifier of {rows} rows: only the 92 rows of '
                "COCO category ids can be mapped, to MMDetection's 80 classes"
            )
        ids = torch.tensor(COCO_CATEGORY_IDS)
        for leaf in ('weight', 'bias'):
            converted[f'bbox_head.fc_cls.{leaf}'] = converted[f'bbox_head.fc_cls.{leaf}'][ids]
    return converted


def save(state_dict: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a state dict as an MMEngine checkpoint, whole or not at all.

    Args:
        state_dict: Tensors under our names.
        path: Destination; must not exist.

    Raises:
        CheckpointError: If ``path`` exists or its folder does not.
    """
    path = Path(path)
    if path.exists():
        raise CheckpointError(f'{path} exists: delete it or name another destination')
    if not path.parent.is_dir():
        raise CheckpointError(f'{path.parent} is no folder: create it first')
    partial = path.with_name(path.name + '.partial')
    torch.save(dict(meta=dict(mmsmca_version=__version__), state_dict=dict(state_dict)), partial)
    partial.replace(path)


def _numbered(prefix: str, layers: Mapping[str, int]) -> list[str]:
    """Prefixes of every layer: ``N`` replaced by 0, 1, ..."""
    if '.N.' not in prefix:
        return [prefix]
    count = layers[prefix.split('.')[1]]
    return [prefix.replace('.N.', f'.{n}.') for n in range(max(count, 1))]


def _rename(name: str, names: Sequence[tuple[str, str]]) -> str | None:
    """Our name of a reference tensor, or None."""
    for reference, ours in names:
        pattern = re.escape(reference).replace('N', r'(\d+)')
        if match := re.match(pattern, name):
            number = match[1] if match.groups() else ''
            return ours.replace('N', number) + name[match.end() :]
    return None
