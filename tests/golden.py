"""Reference cases for SMCA: deterministic weights and inputs, recorded outputs.

A case is one ``<name>.npz``. Its ``meta`` entry is a JSON string that holds the
reference model's hyper-parameters, the name and shape of every tensor in the
reference state dict, the image sizes and the ground truth. Weights and images
are not stored: they are drawn from ``numpy.random.RandomState`` (whose streams
never change), seeded by the tensor's name, so that every machine rebuilds the
same state dict. The other entries are the outputs that the reference
implementation gave for them in float64.

    case = load("single_scale_independent")
    case.state_dict()   # reference-named tensors, float64
    case.images()       # (B, 3, H, W) float64, already normalised, zero-padded
    case.expected       # dict of numpy arrays

Expected arrays: ``cls`` (layers, B, Q, classes), logits of every decoder layer;
``box`` (layers, B, Q, 4), normalised (cx, cy, w, h); ``points``, the centre logits
z; ``det_scores``, ``det_labels``, ``det_boxes``, the best detections in descending
order, boxes (x1, y1, x2, y2) in pixels of the image content. ``meta["losses"]``:
each loss term before its weight (``meta["loss_weights"]``); a suffix ``_k`` is
decoder layer k, none is the last. ``meta["ground_truth"]``: labels and normalised
(cx, cy, w, h) boxes per image.
"""

import json
import zlib
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from mmengine.structures import InstanceData
from utils import build_detector

from mmsmca.checkpoints.names import architecture_of, convert_reference

HERE = Path(__file__).parent / 'data' / 'golden'
CASES = [
    *(f'single_scale_{scale}' for scale in ('fixed', 'isotropic', 'independent', 'covariance')),
    'multi_scale_conv',
]
CONFIGS = {
    'single_scale': 'smca/smca_r50_8xb2-50e_coco.py',
    'multi_scale_conv': 'smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py',
}


def draw(name, shape, salt=''):
    """Draw the tensor called ``name``: float64 array of ``shape``."""
    rng = np.random.RandomState(zlib.crc32((salt + name).encode()))
    x = rng.standard_normal(tuple(shape))
    leaf = name.rsplit('.', 1)[-1]
    if leaf == 'running_var':
        return 1.0 + 0.1 * np.abs(x)
    if leaf == 'running_mean':
        return 0.1 * x
    if leaf == 'num_batches_tracked':
        return np.zeros(tuple(shape), dtype=np.int64)
    if 'point3' in name:  # the scales: around 1, clearly not 1
        return 1.0 + 0.3 * x if leaf == 'bias' else 0.03 * x
    if 'point2' in name:  # the head offsets, in feature cells
        return 0.8 * x if leaf == 'bias' else 0.03 * x
    if 'query_embed' in name:
        return x
    if leaf == 'level_embed':
        return 0.5 * x
    if len(shape) == 1:  # biases and norm weights
        return (1.0 if leaf == 'weight' else 0.0) + 0.1 * x
    fan_in = int(np.prod(shape[1:]))
    if 'input_proj' in name:  # drop the mean of the rectified features: positions differ
        x = 6.0 * (x - x.mean(axis=tuple(range(1, x.ndim)), keepdims=True))
    elif 'in_proj' in name:  # sharp attention: queries differ
        x = 2.0 * x
    elif 'out_proj' in name:
        x = 0.5 * x
    return x / np.sqrt(fan_in)


def images(sizes, salt=''):
    """Images of ``sizes`` [(h, w), ...], zero-padded to the largest: (B, 3, H, W)."""
    height, width = max(h for h, _ in sizes), max(w for _, w in sizes)
    batch = np.zeros((len(sizes), 3, height, width))
    for i, (h, w) in enumerate(sizes):
        blocks = draw(f'blocks{i}', (3, -(-h // 32), -(-w // 32)), salt)
        coarse = np.kron(blocks, np.ones((1, 32, 32)))[:, :h, :w]
        batch[i, :, :h, :w] = 2.0 * coarse + 0.3 * draw(f'image{i}', (3, h, w), salt)
    return batch


def load(name, folder=HERE):
    """Load the case called ``name``."""
    with np.load(Path(folder) / f'{name}.npz') as archive:
        meta = json.loads(str(archive['meta']))
        expected = {k: archive[k] for k in archive.files if k != 'meta'}
    salt = meta['salt']
    return SimpleNamespace(
        name=name,
        meta=meta,
        expected=expected,
        state_dict=cache(lambda: {k: draw(k, s, salt) for k, s in meta['shapes'].items()}),
        images=cache(lambda: images(meta['sizes'], salt)),
    )


def build(case, dtype, implementation):
    """Our model of a golden case: weights through the converter, everything else from a config."""
    tensors = {name: torch.from_numpy(x) for name, x in case.state_dict().items()}
    sizes = case.meta['hyper']
    ffn_cfg = dict(feedforward_channels=sizes['feedforward_channels'])
    model = build_detector(
        CONFIGS[architecture_of(tensors)],
        dict(
            num_queries=sizes['num_queries'],
            encoder=dict(num_layers=sizes['encoder_layers'], layer_cfg=dict(ffn_cfg=ffn_cfg)),
            decoder=dict(
                num_layers=sizes['decoder_layers'],
                layer_cfg=dict(
                    ffn_cfg=ffn_cfg,
                    cross_attn_cfg=dict(implementation=implementation),
                    spatial_prior_cfg=dict(scale=sizes['scale']),
                ),
            ),
            bbox_head=dict(num_classes=sizes['num_classes']),
            test_cfg=dict(max_per_img=case.expected['det_scores'].shape[1]),
        ),
    ).to(dtype)
    model.load_state_dict(convert_reference(tensors), strict=True)
    return model.eval()


def data_samples(case, dtype):
    sizes = case.meta['sizes']
    padded = tuple(max(size) for size in zip(*sizes, strict=True))
    samples = []
    for (height, width), truth in zip(sizes, case.meta['ground_truth'], strict=True):
        boxes = bbox_cxcywh_to_xyxy(torch.tensor(truth['boxes_cxcywh'], dtype=dtype))
        boxes = boxes * torch.tensor([width, height, width, height], dtype=dtype)
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width), batch_input_shape=padded, scale_factor=(1.0, 1.0)
            )
        )
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor(truth['labels']))
        samples.append(sample)
    return samples
