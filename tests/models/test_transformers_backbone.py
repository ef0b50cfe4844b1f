"""Backbones of transformers: weights from a folder, frozen parts, strides, errors, ONNX."""

import pytest
import torch
from mmdet.registry import MODELS
from transformers import CONFIG_MAPPING, AutoModelForImageClassification
from utils import load_config

from mmsmca.errors import ConfigError
from mmsmca.models.backbones.transformers_backbone import TransformersBackbone

CONFIGS = ('convnext-t', 'swin-t', 'dinov3-convnext-t', 'dinov3-vit-s')
# One block per stage, a quarter of the channels or less.
SMALL = dict(
    convnext=dict(depths=[1] * 4, hidden_sizes=[8, 16, 32, 64]),
    swin=dict(depths=[1] * 4, embed_dim=8, num_heads=[1, 2, 2, 2]),
    dinov3_convnext=dict(depths=[1] * 4, hidden_sizes=[8, 16, 32, 64]),
    dinov3_vit=dict(num_hidden_layers=12, hidden_size=32, num_attention_heads=2,
                    intermediate_size=32),
)  # fmt: skip


def small(model='convnext', **changes):
    return TransformersBackbone(
        model, **dict(config=SMALL.get(model), out_indices=(11,) if 'vit' in model else (1, 2, 3))
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
