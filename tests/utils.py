"""What several tests need."""

from pathlib import Path

from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.model import BaseModel

import mmsmca  # noqa: F401

ROOT = Path(__file__).parent.parent
register_all_modules()


def load_config(name: str) -> Config:
    """Config below ``configs/`` whose backbone starts from scratch: no weights are downloaded."""
    cfg = Config.fromfile(ROOT / 'configs' / name)
    cfg.model.backbone.init_cfg = None
    return cfg


def build_detector(name: str, model_options: dict | None = None) -> BaseModel:
    """Detector of a config, with ``model_options`` merged into its ``model``."""
    cfg = load_config(name)
    cfg.merge_from_dict(dict(model=model_options or {}))
    return MODELS.build(cfg.model)
