"""What several tests need."""

import copy
import importlib.util
from functools import cache
from pathlib import Path
from types import ModuleType

import mmdet
import torch
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModel
from mmengine.structures import InstanceData
from torch import nn

import mmsmca  # noqa: F401
from mmsmca.config_scope import config_path

ROOT = Path(__file__).parent.parent
register_all_modules()

# Architectures of the pretrained models that configs name.
ARCHITECTURES = {
    'facebook/convnext-tiny-224': 'convnext',
    'facebook/dinov3-convnext-tiny-pretrain-lvd1689m': 'dinov3_convnext',
    'facebook/dinov3-vits16-pretrain-lvd1689m': 'dinov3_vit',
    'microsoft/swin-tiny-patch4-window7-224': 'swin',
}
# Backbones of transformers with one block per stage, a quarter of the channels or less.
SMALL_TRANSFORMERS = dict(
    convnext=dict(depths=[1] * 4, hidden_sizes=[8, 16, 32, 64]),
    swin=dict(depths=[1] * 4, embed_dim=8, num_heads=[1, 2, 2, 2]),
    dinov3_convnext=dict(depths=[1] * 4, hidden_sizes=[8, 16, 32, 64]),
    dinov3_vit=dict(num_hidden_layers=4, hidden_size=32, num_attention_heads=2,
                    num_register_tokens=4, intermediate_size=32),
    hgnet_v2=dict(depths=[1] * 4, embedding_size=8, hidden_sizes=[8, 16, 32, 64],
                  stem_channels=[3, 8, 8], stage_in_channels=[8, 8, 16, 32],
                  stage_mid_channels=[8] * 4, stage_out_channels=[8, 16, 32, 64],
                  stage_num_blocks=[1] * 4, stage_numb_of_layers=[1] * 4),
)  # fmt: skip
MAX_QUERIES = 50
FEW_QUERIES = dict(num_queries=12, decoder=dict(num_layers=2), test_cfg=dict(max_per_img=12))


@cache
def _config(name: str) -> Config:
    cfg = Config.fromfile(config_path(name) if '::' in name else ROOT / 'configs' / name)
    backbone = cfg.model.backbone
    backbone.init_cfg = None
    if backbone.type == 'TransformersBackbone':
        backbone.model = ARCHITECTURES[backbone.model]
    return cfg


def load_config(name: str | Path) -> Config:
    """Config below ``configs/`` or of a package (``mmdet::...``); nothing is downloaded.

    Its backbone starts from scratch.
    """
    return copy.deepcopy(_config(str(name)))


def shrink(model: ConfigDict) -> None:
    """Give a detector a ResNet-18 with a sixteenth of ResNet-50's channels, and few queries.

    MMDetection's Swin-L gets a hundredth of its channels.
    """
    if model.backbone.get('depth', 0) >= 50:
        model.backbone.update(depth=18, base_channels=16)
        model.neck.in_channels = [channels // 16 for channels in model.neck.in_channels]
    if model.backbone.type == 'SwinTransformer':
        model.backbone.update(embed_dims=8, depths=[1] * 4, num_heads=[1] * 4)
        model.neck.in_channels = [8, 16, 32, 64]
    model.num_queries = min(model.num_queries, MAX_QUERIES)
    detections = model.get('test_cfg', {}).get('max_per_img', 100)
    model.test_cfg = dict(model.get('test_cfg', {}), max_per_img=min(detections, MAX_QUERIES))


def build_detector(name: str, model_options: dict | None = None) -> BaseModel:
    """Detector of a config, with ``model_options`` merged into its ``model``."""
    cfg = load_config(name)
    # Merging takes `_delete_` out of the options.
    cfg.merge_from_dict(dict(model=copy.deepcopy(model_options or {})))
    return MODELS.build(cfg.model)


def sample(size, padded, num_boxes=2, dtype=torch.float32):
    """A data sample of an image of ``size`` (height, width) in a batch padded to ``padded``."""
    height, width = size
    generator = torch.Generator().manual_seed(height * 1000 + width)
    corners = torch.rand(num_boxes, 2, 2, generator=generator, dtype=dtype).sort(dim=1).values
    boxes = corners.flatten(1) * torch.tensor([width, height, width, height], dtype=dtype)
    data_sample = DetDataSample(
        metainfo=dict(
            img_shape=size, batch_input_shape=padded, ori_shape=size, scale_factor=(1.0, 1.0)
        )
    )
    labels = torch.randint(80, (num_boxes,), generator=generator)
    data_sample.gt_instances = InstanceData(bboxes=boxes, labels=labels)
    return data_sample


def batch(*sizes, num_boxes=2, dtype=torch.float32):
    """Random images of ``sizes``, zero-padded to the largest, and their data samples."""
    padded = tuple(max(size) for size in zip(*sizes, strict=True))
    images = torch.zeros(len(sizes), 3, *padded, dtype=dtype)
    for i, (height, width) in enumerate(sizes):
        generator = torch.Generator().manual_seed(i)
        images[i, :, :height, :width] = torch.randn(
            3, height, width, generator=generator, dtype=dtype
        )
    return images, [sample(size, padded, num_boxes, dtype) for size in sizes]


def randomise(module):
    """Set parameters such that everything matters; biases and norms stay near what they were."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
            else:
                nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return module


def mmdet_script(name: str) -> ModuleType:
    """One of MMDetection's own scripts as a module, such as ``train``."""
    path = Path(mmdet.__file__).parent / f'.mim/tools/{name}.py'
    spec = importlib.util.spec_from_file_location(f'mmdet_{path.stem}', path)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script
