"""From the neck's maps to feature levels: flattened, with positions, padding told from content."""

import math
from collections.abc import Sequence

import torch
from mmcv.ops import MultiScaleDeformableAttention
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmdet.structures import SampleList
from torch import Tensor, nn

from mmsmca.models.layers.encoder import flatten_levels
from mmsmca.models.layers.gaussian_encoder import CellPrior
from mmsmca.models.layers.joint_co_attention import JointCoAttention
from mmsmca.models.layers.precision import widen

# Modules of the encoders that start as they say, not with Xavier's weights as the rest.
OWN_INITIALISATION = (MultiScaleDeformableAttention, JointCoAttention, CellPrior)


def level_inputs(
    img_feats: Sequence[Tensor],
    batch_data_samples: SampleList,
    strides: Sequence[int],
    positional_encoding: nn.Module,
    level_embed: Tensor | None,
    like: Tensor,
) -> tuple[dict, Tensor]:
    """Flatten the neck's maps and tell padding from content.

    Args:
        img_feats: Maps of the neck, (B, C, H_j, W_j) each.
        batch_data_samples: Their ``img_shape`` is the size of the image content,
            ``batch_input_shape`` the padded size, (height, width) in pixels.
        strides: Stride of every map, in pixels.
        positional_encoding: Encodes a mask of (B, H, W) as (B, C, H, W).
        level_embed: What is added to a level's position encoding, (L, C), or None.
        like: Tensor of the precision that positions get.

    Returns:
        Arguments of the encoder; width and height of each image's content, in pixels, (B, 2), in
        float32 at least: bfloat16 would round 1333 pixels to 1336.

    Raises:
        ValueError: If the maps do not have the strides.
    """
    height, width = batch_data_samples[0].batch_input_shape
    shapes = [sample.img_shape[:2] for sample in batch_data_samples]
    level_shapes = [(feat.shape[-2], feat.shape[-1]) for feat in img_feats]
    _check_level_shapes(level_shapes, (height, width), strides)
    masks = []
    for shape, stride in zip(level_shapes, strides, strict=True):
        mask = like.new_ones((len(shapes), *shape), dtype=torch.bool)
        for i, (h, w) in enumerate(shapes):
            # As many cells as the image has alone; interpolating a mask of the pixels, as DETR
            # does, often gives one more where the stride does not divide the padded size.
            mask[i, : math.ceil(h / stride), : math.ceil(w / stride)] = False
        masks.append(mask)
    pos = [positional_encoding(level_mask).to(like.dtype) for level_mask in masks]
    if level_embed is not None:
        pos = [p + e[:, None, None] for p, e in zip(pos, level_embed, strict=True)]

    # Attention without a mask is faster: give none where nothing is padded.
    padded = any(shape != (height, width) for shape in shapes)
    encoder_inputs = dict(
        feat=flatten_levels(img_feats),
        feat_pos=flatten_levels(pos),
        feat_mask=torch.cat([m.flatten(1) for m in masks], dim=1) if padded else None,
        level_shapes=level_shapes,
    )
    return encoder_inputs, widen(like).new_tensor([(w, h) for h, w in shapes])


def neck_strides(detector: DetectionTransformer) -> Sequence[int]:
    """Strides of the neck's maps, from those of the encoded levels.

    Args:
        detector: A detector, built; ``decoder.strides`` are the configured strides of the encoded
            levels, in pixels.

    Returns:
        One stride per map of the neck.

    Raises:
        ValueError: If they do not fit the maps that backbone and neck give.
    """
    encoder, strides = detector.encoder, detector.decoder.strides
    given = _measured_strides(detector, side=max(128, 4 * max(strides)))
    if given is not None:
        encoded = encoder.output_strides(given)
        if tuple(encoded) != tuple(strides):
            raise ValueError(
                f'decoder.strides={list(strides)} does not fit the encoded levels, '
                f'which have strides {encoded}: set it to these'
            )
    return encoder.input_strides(strides)


def _measured_strides(detector: DetectionTransformer, side: int) -> list[int] | None:
    """Strides of the maps of an image of zeros; None if the image cannot be processed."""
    modules = list(detector.modules())
    modes = [module.training for module in modules]
    try:
        # Batch norm would learn from the image.
        for module in modules:
            module.training = False
        with torch.no_grad():
            maps = detector.extract_feat(torch.zeros(1, 3, side, side))
        return [round(side / x.shape[-1]) for x in maps]
    except Exception:  # what does not fit together is told by the first real image
        return None
    finally:
        for module, mode in zip(modules, modes, strict=True):
            module.training = mode


def _check_level_shapes(
    level_shapes: Sequence[tuple[int, int]], padded_size: tuple[int, int], strides: Sequence[int]
) -> None:
    exact = [tuple(side / stride for side in padded_size) for stride in strides]
    expected = [tuple(map(math.ceil, sides)) for sides in exact]
    if level_shapes == expected:
        return
    remedy = ''
    if level_shapes == [tuple(map(math.floor, sides)) for sides in exact]:
        remedy = (
            '. The backbone rounds sizes down: set '
            f'model.data_preprocessor.pad_size_divisor={math.lcm(*strides)}'
        )
    raise ValueError(
        f'decoder.strides={list(strides)} does not fit the neck: for an '
        f'image of {padded_size[0]} x {padded_size[1]} pixels it gave maps of '
        f'{level_shapes}, not {expected}{remedy}'
    )
