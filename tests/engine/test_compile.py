"""``torch.compile``: the results are the same, and image sizes do not compile anew."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import HOOKS
from torch._dynamo.testing import CompileCounterWithBackend
from utils import build_detector, sample

from mmsmca.engine.hooks.compile_hook import PARTS

# The paper's models with a narrow ResNet-18 and fewer layers.
MODELS = {
    'single scale': (
        'smca/smca_r50_8xb2-50e_coco.py',
        dict(neck=dict(in_channels=[64]), encoder=dict(num_layers=1)),
    ),
    'multi scale': (
        'smca/smca-multi-scale_r50_8xb1-50e_coco.py',
        dict(
            neck=dict(in_channels=[32, 64]),
            encoder=dict(num_layers=2, layer_kinds=['intra', 'multi']),
        ),
    ),
    'smca-dino': (
        'smca_dino/smca-dino_r50_8xb2-12e_coco.py',
        dict(
            neck=dict(in_channels=[16, 32, 64], num_outs=3),
            encoder=dict(num_convs=1, num_levels=3),
            decoder=dict(num_layers=1, strides=[8, 16, 32]),
        ),
    ),
}
# In the first no two sizes of maps, cells and queries are the same: PyTorch would compile for that.
SIZES = [(160, 224), (128, 160), (160, 96), (96, 96), (192, 160)]


def build(name):
    config, options = MODELS[name]
    small = dict(num_queries=11, test_cfg=dict(max_per_img=11))
    parts = dict(backbone=dict(depth=18, base_channels=8), decoder=dict(num_layers=2))
    parts = {part: {**default, **options.get(part, {})} for part, default in parts.items()}
    options = {**small, **options, **parts}
    torch.manual_seed(0)
    return build_detector(config, options).eval()


def batches():
    """Batches of five sizes and changing numbers of objects, without padding and with it."""
    generator = torch.Generator().manual_seed(0)
    for i, (height, width) in enumerate(SIZES):
        for padding in (0, 16):
            images = torch.randn(2, 3, height, width, generator=generator)
            sizes = [(height, width), (height - padding, width)]
            yield images, [sample(s, (height, width), (i + j) % 3) for j, s in enumerate(sizes)]


def train(model, images, samples):
    model.zero_grad()
    torch.manual_seed(0)  # of the noise that DINO's denoising removes
    losses = model(images, samples, mode='loss')
    sum(losses.values()).backward()
    return [*losses.values(), model.query_embedding.weight.grad.clone()]


@torch.no_grad()
def predict(model, images, samples):
    detections = [s.pred_instances for s in model(images, samples, mode='predict')]
    return [x for d in detections for x in (d.scores, d.bboxes)]


@pytest.mark.parametrize('step', [train, predict])
@pytest.mark.parametrize('name', MODELS)
def test_every_part_is_compiled_once_with_padding_and_once_without(name, step):
    torch._dynamo.reset()
    # In evaluation mode, without dropout; gradients flow. DINO's loss is of training mode.
    training = step is train and name == 'smca-dino'
    model, compiled = build(name).train(training), build(name).train(training)
    counter = CompileCounterWithBackend('eager')
    hook = HOOKS.build(dict(type='CompileHook', backend=counter))
    hook.before_run(SimpleNamespace(model=compiled))
    for images, samples in batches():
        for actual, expected in zip(
            step(compiled, images, samples), step(model, images, samples), strict=True
        ):
            torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    # Backbone and neck do not see the padding.
    assert len(PARTS) == 3
    assert counter.frame_count == 1 + 2 + 2


def test_some_parts_are_compiled():
    model = build('single scale')
    HOOKS.build(dict(type='CompileHook', parts=['forward_encoder'])).before_run(
        SimpleNamespace(model=model)
    )
    assert [part for part in PARTS if part in vars(model)] == ['forward_encoder']
    with pytest.raises(ValueError, match=r"parts=\['neck'\]: choose from \['extract_feat'"):
        HOOKS.build(dict(type='CompileHook', parts=['neck']))
