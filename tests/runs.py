"""Data, checkpoints and configs of small runs, good and bad."""

import copy
import json
import sys
from argparse import Namespace
from collections import OrderedDict
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import torch
from mmdet.registry import MODELS
from mmengine.config import Config, ConfigDict
from mmengine.logging import MMLogger
from utils import ROOT, load_config

from mmsmca.checks.trial import trial_faults
from mmsmca.errors import raise_first
from mmsmca.launch import run_script

CLASSES = ('disc', 'square', 'triangle', 'star', 'cross', 'ring')
SMALL = 'small/smca_r18w16_1xb8-11e_shapes128.py'
# Of a second per epoch.
TINY_MODEL = dict(
    num_queries=4,
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=1),
    test_cfg=dict(max_per_img=4),
)
HEAD_WEIGHT = 'bbox_head.fc_cls.weight'
CONFIG = f"""
_base_ = '{ROOT / 'configs' / SMALL}'
train_cfg = dict(max_epochs=1, val_interval=1)
model = {TINY_MODEL}
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
work_dir = 'work'
"""


def write_json(path: Path, content: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def coco(classes=CLASSES, num_images: int = 3) -> dict:
    return dict(
        images=[dict(id=i, file_name=f'{i}.jpg', height=96, width=128) for i in range(num_images)],
        annotations=[
            dict(id=i + 1, image_id=i, category_id=1, bbox=[8, 8, 64, 48], area=3072, iscrowd=0)
            for i in range(num_images)
        ],
        categories=[dict(id=i, name=name) for i, name in enumerate(classes, 1)],
    )


def write_data(root: Path) -> Path:
    """Three grey images in each split, below the file names of configs/small."""
    for split in ('train', 'val'):
        write_json(root / f'annotations/instances_{split}.json', coco())
        (root / split).mkdir()
        for i in range(3):
            cv2.imwrite(str(root / split / f'{i}.jpg'), np.full((96, 128, 3), 40 * i, np.uint8))
    return root


def on_data(config: Config, root: Path) -> Config:
    cfg = copy.deepcopy(config)
    for phase in ('train', 'val', 'test'):
        cfg[f'{phase}_dataloader'].dataset.data_root = str(root)
    cfg.val_evaluator.ann_file = str(root / 'annotations/instances_val.json')
    cfg.test_evaluator = copy.deepcopy(cfg.val_evaluator)
    return cfg


def data_options(data: Path) -> dict[str, object]:
    """What puts a config of configs/small on the data in a folder, to be loaded without workers."""
    options: dict[str, object] = {}
    for phase in ('train', 'val', 'test'):
        options[f'{phase}_dataloader.dataset.data_root'] = f'{data}/'
        options[f'{phase}_dataloader.num_workers'] = 0
        options[f'{phase}_dataloader.persistent_workers'] = False
    for phase in ('val', 'test'):
        options[f'{phase}_evaluator.ann_file'] = f'{data}/annotations/instances_val.json'
    return options


def small_config(data: Path, name: str = SMALL, **options: object) -> Config:
    """A config of configs/small on the data in a folder, with the options merged into it."""
    cfg = load_config(name)
    cfg.merge_from_dict(data_options(data) | options)
    return cfg


def model_state(model: ConfigDict) -> dict[str, torch.Tensor]:
    return MODELS.build(copy.deepcopy(model)).state_dict()


@cache
def shapes_state() -> dict[str, torch.Tensor]:
    return model_state(load_config(SMALL).model)


def save_checkpoint(
    path: Path, classes=CLASSES, rows: int = 6, model: ConfigDict | None = None, **content
) -> str:
    """Write a checkpoint of a model, of configs/small by default, as training writes it."""
    state = dict(model_state(model) if model else shapes_state())
    state[HEAD_WEIGHT] = torch.zeros(rows, state[HEAD_WEIGHT].size(1))
    state[HEAD_WEIGHT.replace('weight', 'bias')] = torch.zeros(rows)
    meta = dict(dataset_meta=dict(classes=classes))
    progress = dict(message_hub={}, optimizer={}, param_schedulers=[])
    torch.save(dict(meta=meta, state_dict=state) | progress | content, path)
    return str(path)


class Payload:
    def __reduce__(self):
        return Path.touch, (Path('executed'),)


def train_args(config: str, **changes: object) -> Namespace:
    return Namespace(**dict(config=config, cfg_options=None, resume=None, work_dir=None) | changes)


def assert_names(message: str, *parts: object) -> None:
    for part in parts:
        assert str(part) in message


def run(monkeypatch, *arguments: str) -> int:
    """Run a tool in this process."""
    monkeypatch.setattr(sys, 'argv', [f'{arguments[0]}.py', *arguments[1:]])
    # Runs that start in the same second would share a logger, which writes where the first did.
    monkeypatch.setattr(MMLogger, '_instance_dict', OrderedDict())
    return run_script(arguments[0])


def trial(cfg: Config, phase: str) -> None:
    raise_first(trial_faults(cfg, phase))


def real_study(folder: Path, data: Path, **options: object) -> Path:
    """One experiment, two seeds of eight iterations each, with a checkpoint after every second."""
    config = ROOT / 'configs/small/smca_r18w16_1xb4-3ki_shapes192.py'
    cfg_options = {
        **data_options(data),
        'train_dataloader.batch_size': 2,
        'train_cfg.max_iters': 8,
        'train_cfg.val_interval': 8,
        'default_hooks.checkpoint.interval': 2,
        'default_hooks.logger.interval': 1,
        **options,
    }
    path = folder / 'real.py'
    experiment = dict(name='small', config=str(config), cfg_options=cfg_options)
    path.write_text(f"baseline = 'small'\nseeds = [0, 1]\nexperiments = [{experiment!r}]")
    return path
