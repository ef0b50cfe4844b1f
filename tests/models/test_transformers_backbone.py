"""Backbones of transformers: weights, rates, frozen parts, strides, errors, free sizes."""

import json
import logging

import pytest
import torch
from mmdet.registry import MODELS
from mmengine.optim import build_optim_wrapper
from transformers import CONFIG_MAPPING, AutoModelForImageClassification
from utils import SMALL_TRANSFORMERS as SMALL
from utils import load_config, randomise

from mmsmca.checks.checkpoint import normalisation_faults
from mmsmca.engine.quiet import quiet
from mmsmca.errors import ConfigError
from mmsmca.models.backbones.transformers_backbone import TransformersBackbone

CONFIGS = ('convnext-t', 'swin-t', 'dinov3-convnext-t', 'dinov3-vit-s')


def small(model='convnext', **changes):
    return TransformersBackbone(
        model, **dict(config=SMALL.get(model), out_indices=(3,) if 'vit' in model else (1, 2, 3))
        | changes,
    )  # fmt: skip


@pytest.mark.parametrize('name', CONFIGS)
def test_configs_fit_their_backbones(name):
    cfg = load_config(f'smca_dino/smca-dino_{name}_8xb2-12e_coco.py').model
    with torch.device('meta'):
        backbone = MODELS.build(cfg.backbone)
    channels = cfg.neck.in_channels
    assert backbone.channels == ([channels] if isinstance(channels, int) else channels)


@pytest.mark.parametrize('model', SMALL)
def test_training_state(model):
    """Frozen parts have no gradient, everything else has; checkpointing changes nothing."""
    torch.manual_seed(0)
    backbone = small(model, frozen_stages=1).train()
    images = torch.randn(1, 3, 64, 96)
    torch.manual_seed(1)  # DINOv3 varies the positions of its patches.
    maps = backbone(images)
    sum(x.square().sum() for x in maps).backward()
    frozen = {name for name, p in backbone.named_parameters() if not p.requires_grad}
    assert frozen and len(frozen) < len([*backbone.parameters()]) / 2
    assert all(p.grad is not None for p in backbone.parameters() if p.requires_grad)
    assert [images.size(-1) / x.size(-1) for x in maps] == ([16] if 'vit' in model else [8, 16, 32])
    saving = small(model, frozen_stages=1, with_cp=True).train()
    saving.load_state_dict(backbone.state_dict())
    torch.manual_seed(1)
    sum(x.square().sum() for x in saving(images)).backward()
    for (name, one), other in zip(backbone.named_parameters(), saving.parameters(), strict=True):
        assert one.grad is None or torch.equal(one.grad, other.grad), name


def test_batch_norms_keep_their_statistics():
    backbone = small('resnet', config=dict(depths=[1] * 4, hidden_sizes=[8] * 4, embedding_size=8))
    before = {name: x.clone() for name, x in backbone.named_buffers()}
    backbone.train()(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(x, before[name]) for name, x in backbone.named_buffers())


class Padded(torch.nn.Module):
    """A backbone that pads images as the data preprocessor does."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = backbone

    def forward(self, images):
        height, width = images.shape[-2:]
        return self.backbone(torch.nn.functional.pad(images, (0, -width % 32, 0, -height % 32)))


@pytest.mark.parametrize(
    'model',
    [
        'dinov3_vit',
        # Swin's takes longest: tests/test_deployment.py has it.
        *(pytest.param(x, marks=pytest.mark.slow) for x in ('convnext', 'hgnet_v2')),
    ],
)
def test_traced_program_takes_any_size(model):
    torch.manual_seed(0)
    padded, free = Padded(randomise(small(model))).eval(), torch.export.Dim.DYNAMIC
    with quiet(logging.WARNING):  # pytest would have PyTorch write all its traces down.
        program = torch.export.export(
            padded,
            (torch.randn(2, 3, 250, 300),),
            dynamic_shapes=({0: free, 2: free, 3: free},),
            strict=False,
        ).module()
    for size in ((2, 3, 250, 300), (1, 3, 64, 321), (3, 3, 350, 33)):
        images = torch.randn(size)
        for found, expected in zip(program(images), padded(images), strict=True):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_windows_are_padded_as_swin_does():
    torch.manual_seed(0)
    backbone = randomise(small('swin', config=dict(SMALL['swin'], depths=[2] * 4))).eval()
    images = torch.randn(1, 3, 96, 160)  # Maps of 24 x 40 to 3 x 5 tokens, windows of 7.
    maps = backbone(images)
    layers = [module for module in backbone.modules() if 'maybe_pad' in vars(module)]
    assert len(layers) == 8
    for layer in layers:
        del layer.maybe_pad
    for found, expected in zip(maps, backbone(images), strict=True):
        torch.testing.assert_close(found, expected)


def test_rates_grow_from_block_to_block():
    cfg = load_config('smca_dino/smca-dino_dinov3-vit-s_8xb2-12e_coco.py')
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    groups = build_optim_wrapper(model, cfg.optim_wrapper).param_groups
    rates = {id(p): group['lr'] for group in groups for p in group['params']}
    of = {name: rates.get(id(p)) for name, p in model.named_parameters()}
    names = ['embeddings.cls_token', *(f'model.layer.{i}.mlp.up_proj.bias' for i in range(12))]
    backbone = [of[f'backbone.model.{name}'] for name in names]
    assert backbone == pytest.approx([1e-5 * 0.8 ** (12 - i) for i in range(13)])
    assert of['neck.upsample.weight'] == 1e-4


def test_normalisation_is_that_of_the_weights(tmp_path):
    CONFIG_MAPPING['convnext'](**SMALL['convnext']).save_pretrained(tmp_path)
    model = torch.nn.Module()
    model.backbone = TransformersBackbone(str(tmp_path))
    cfg = load_config('smca_dino/smca-dino_convnext-t_8xb2-12e_coco.py')
    imagenet = cfg.model.data_preprocessor
    assert not [*normalisation_faults(dict(), model)]  # It came without an image processor.
    file = tmp_path / 'preprocessor_config.json'
    file.write_text(
        json.dumps(dict(image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]))
    )
    assert not [*normalisation_faults(imagenet, model)]
    remedy = 'Set mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], bgr_to_rgb=True.'
    for change in dict(mean=None), dict(std=[1, 1, 1]), dict(bgr_to_rgb=False):
        (fault,) = normalisation_faults(dict(imagenet, **change), model)
        assert str(fault).endswith(remedy)
    file.write_text(json.dumps(dict(do_normalize=False)))
    (fault,) = normalisation_faults(imagenet, model)
    assert 'Set mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0]' in str(fault)


@pytest.mark.parametrize('model', ['convnext', 'swin'])
def test_weights_come_from_a_folder_when_training_initialises(model, tmp_path):
    """The folder has a classifier, as the hub has."""
    config = CONFIG_MAPPING[model](**SMALL[model])
    pretrained = AutoModelForImageClassification.from_config(config)
    pretrained.save_pretrained(tmp_path)
    backbone = TransformersBackbone(str(tmp_path))
    backbone.init_weights()
    theirs = {name.split('.', 1)[1]: x for name, x in pretrained.state_dict().items()}
    carried = [
        torch.equal(weight, theirs[key])
        for name, weight in backbone.model.state_dict().items()
        if (key := name.removeprefix('swin.')) in theirs
    ]
    assert all(carried) and len(carried) > len(theirs) / 2
    built = TransformersBackbone(str(tmp_path)).state_dict()
    assert not all(torch.equal(x, built[name]) for name, x in backbone.state_dict().items())


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (dict(model='/nowhere'), ['backbone.model', '/nowhere', 'folder']),
        (dict(model='bert'), ['backbone.model', 'bert', 'no backbone']),
        (dict(out_indices=(7,)), ['out_indices=(7,)', 'convnext']),
        (dict(frozen_stages=9), ['backbone.frozen_stages=9', '4']),
        (dict(config=dict(drop_path=0.1)), ['backbone.config.drop_path', 'ConvNext']),
    ],
)
def test_what_is_wrong_is_named(arguments, words, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(ConfigError) as error:
        TransformersBackbone(**dict(model='convnext') | arguments)
    for word in words:
        assert word in str(error.value)


def test_pyramid_of_a_plain_vit():
    neck = MODELS.build(
        dict(type='SimpleFeaturePyramid', in_channels=8, out_channels=32, num_outs=4)
    )
    maps = neck((torch.randn(2, 8, 5, 7),))
    assert [tuple(x.shape) for x in maps] == [
        (2, 32, 10, 14), (2, 32, 5, 7), (2, 32, 3, 4), (2, 32, 2, 2)
    ]  # fmt: skip
