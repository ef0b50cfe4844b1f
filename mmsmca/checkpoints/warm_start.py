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

from .files import CheckpointError
from .names import DETR_NAMES, NAMES, coco_rows, describe_reference, new_name

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
# Parts of our model that have a different meaning in DETR.
DETR_DIFFERS = {
    'bbox_head.fc_cls': 'classes and "no object" share a softmax there, each has a sigmoid here',
    'bbox_head.fc_reg': 'boxes are relative to the image there, to the centre of the query here',
}
SMCA_DIFFERS = {'bbox_head.fc_cls': 'the classifier starts fresh, for other classes'}
REFINEMENT = "every decoder layer has its own head there and refines the previous layer's box"
# Tensors that identify a model. SMCA comes first, as it has the tensors that identify DETR, too.
SOURCES = {
    'SMCA': ('decoder.layers.0.spatial_prior.norm.weight', 'bbox_head.fc_reg.weight'),
    'SMCA of the authors': (
        'transformer.decoder.layers.0.norm4.weight',
        'bbox_embed.layers.2.weight',
    ),
    'DETR of MMDetection': (
        'decoder.layers.0.cross_attn.attn.in_proj_weight',
        'bbox_head.fc_reg.weight',
    ),
    'DETR of facebookresearch': (
        'transformer.decoder.layers.0.multihead_attn.in_proj_weight',
        'bbox_embed.layers.2.weight',
    ),
    'Deformable DETR of MMDetection': (
        'encoder.layers.0.self_attn.sampling_offsets.weight',
        'bbox_head.reg_branches.0.4.weight',
    ),
    'Deformable DETR of fundamentalvision': (
        'transformer.encoder.layers.0.self_attn.sampling_offsets.weight',
        'bbox_embed.0.layers.2.weight',
    ),
}


class Candidate(NamedTuple):
    """A tensor of the source, before it is known whether it fits.

    Attributes:
        source: Its name in the source.
        tensor: The values to carry over.
        excerpt: Which part of the source's tensor they are, if not all. Defaults to ''.
    """

    source: str
    tensor: Tensor
    excerpt: str = ''


class WarmStart(NamedTuple):
    """What is carried over, and why the rest is not, for every tensor of both models.

    Attributes:
        source: The model recognised, a key of :data:`SOURCES`.
        state_dict: Tensors carried over, under our names.
        loaded: Source of each tensor of ours that is loaded, by our name.
        fresh: Why each other tensor of ours starts as the config initialises it, by our name.
        unused: Why each other tensor of the source is not carried over, by its name.
    """

    source: str
    state_dict: dict[str, Tensor]
    loaded: dict[str, str]
    fresh: dict[str, str]
    unused: dict[str, str]


def model_tensors(config: str) -> dict[str, Tensor]:
    """Build the SMCA of a config for the names and shapes of its tensors.

    Args:
        config: Path of the config. Its ``init_cfg`` are ignored: nothing is downloaded.

    Returns:
        The state dict of the model.

    Raises:
        CheckpointError: If the config's model is not an SMCA, or cannot be built.
    """
    register_all_modules()
    try:
        state_dict = MODELS.build(Config.fromfile(config).model).state_dict()
    except Exception as error:  # a config is Python code: anything can be wrong with it
        raise CheckpointError(f'the model of {config} cannot be built: {error}') from error
    if 'decoder.center_head.layers.0.weight' not in state_dict:
        raise CheckpointError(f'the model of {config} is not an SMCA: specify the config of one')
    return state_dict


def warm_start(source: Mapping[str, Tensor], model: Mapping[str, Tensor]) -> WarmStart:
    """Carry over what a DETR, Deformable DETR or other SMCA shares with an SMCA.

    Args:
        source: State dict of a DETR, a Deformable DETR or an SMCA, under the names of MMDetection
            (ours for SMCA) or of the original implementation.
        model: State dict of the SMCA to start; only names and shapes matter.

    Returns:
        The tensors to load, and an account of all tensors.

    Raises:
        CheckpointError: If the source is none of these models, or nothing of it fits.
    """
    kind = next((k for k, names in SOURCES.items() if source.keys() >= set(names)), None)
    if kind is None:
        raise CheckpointError(f'this is not one of the models to start from: {", ".join(SOURCES)}')
    candidates, differs, unused = _candidates(kind, source, model)
    misfits = {**_misfits(candidates, model), **differs}
    state_dict, loaded = {}, {}
    for name, candidate in candidates.items():
        if (part := _part(name)) in misfits:
            unused[candidate.source] = misfits[part]
        else:
            state_dict[name] = candidate.tensor
            loaded[name] = candidate.source + candidate.excerpt
    if not loaded:
        raise CheckpointError(f'nothing in this {kind} fits the config')
    fresh = {
        name: misfits.get(_part(name), 'a counter, not stored there')
        for name in model
        if name not in loaded
    }
    return WarmStart(kind, state_dict, loaded, fresh, unused)


def _candidates(
    kind: str, source: Mapping[str, Tensor], model: Mapping[str, Tensor]
) -> tuple[dict[str, Candidate], dict[str, str], dict[str, str]]:
    """Candidates by our name; why parts of ours differ; why source tensors are not used."""
    original = {
        'DETR of facebookresearch': NAMES['single_scale'],
        'Deformable DETR of fundamentalvision': DEFORMABLE_NAMES,
    }.get(kind)
    if kind == 'SMCA of the authors':
        original = NAMES[str(describe_reference(source)['architecture'])]
    named, unused = {}, {}
    for name, tensor in source.items():
        if (ours := new_name(name, original) if original else name) is None:
            unused[name] = 'not in this SMCA'
        else:
            named[ours] = Candidate(name, tensor)
    if kind.startswith('Deformable'):
        candidates, differs = _from_deformable(named, unused, len(model['bbox_head.fc_cls.bias']))
        return candidates, differs, unused
    if 'neck.convs.1.conv.weight' in named:
        return named, SMCA_DIFFERS, unused
    # Single-scale models project only the last feature map of the backbone.
    last = sum(bool(re.fullmatch(r'neck\.convs\.\d+\.conv\.weight', name)) for name in model) - 1
    candidates = {
        name.replace('neck.convs.0.', f'neck.convs.{last}.'): candidate
        for name, candidate in named.items()
    }
    return candidates, SMCA_DIFFERS if kind.startswith('SMCA') else DETR_DIFFERS, unused


def _from_deformable(
    named: Mapping[str, Candidate], unused: dict[str, str], num_classes: int
) -> tuple[dict[str, Candidate], dict[str, str]]:
    """Candidates and differences of a Deformable DETR under MMDetection's names."""
    candidates, others, refines = {}, [], False
    for name, candidate in named.items():
        source, tensor, _ = candidate
        ours = new_name(name, HEAD) or name
        branch = BRANCH.match(name)
        if branch and branch[2] != '0':
            others.append(source)
            first = named.get(BRANCH.sub(r'bbox_head.\1_branches.0.', name))
            refines |= first is None or not torch.equal(tensor, first.tensor)
        elif name == 'query_embedding.weight':
            # The other half is the initial content of the queries, which is zero in SMCA.
            half = tensor[:, : tensor.size(1) // 2].clone()
            candidates[name] = Candidate(source, half, ' (first half, the position)')
        elif branch and branch[1] == 'cls' and (len(tensor), num_classes) == (91, 80):
            candidates[ours] = Candidate(source, coco_rows(tensor), " (rows of COCO's categories)")
        else:
            candidates[ours] = candidate
    reason = REFINEMENT if refines else 'shared by the decoder layers: the first is used'
    unused.update(dict.fromkeys(others, reason))
    head = ('bbox_head.fc_cls', 'bbox_head.reg_ffn', 'bbox_head.fc_reg')
    return candidates, dict.fromkeys(head, REFINEMENT) if refines else {}


def _part(name: str) -> str:
    match = PARTS.match(name)
    return match[0] if match else name.rpartition('.')[0] or name


def _misfits(candidates: Mapping[str, Candidate], model: Mapping[str, Tensor]) -> dict[str, str]:
    """Reasons why parts cannot be carried over, by part."""
    theirs = {name: tuple(candidate.tensor.shape) for name, candidate in candidates.items()}
    ours = {name: tuple(tensor.shape) for name, tensor in model.items()}
    their_parts, our_parts = {*map(_part, theirs)}, {*map(_part, ours)}
    misfits = dict.fromkeys(their_parts - our_parts, 'not in this SMCA')
    misfits |= dict.fromkeys(our_parts - their_parts, 'not in the source')
    # Tensors that only one model has are reported first.
    in_both = theirs.keys() & ours.keys()
    for name in sorted(theirs.keys() | ours.keys(), key=lambda name: (name in in_both, name)):
        part = _part(name)
        # The frozen batch norms of the original implementations do not count batches.
        if part in misfits or name.endswith('.num_batches_tracked'):
            continue
        if name not in in_both:
            where = 'there' if name in theirs else 'here'
            misfits[part] = f'{part} is built differently: {name} is only {where}'
        elif theirs[name] != ours[name]:
            misfits[part] = f'{name} has shape {theirs[name]} there, {ours[name]} here'
    return misfits
