"""Measurement of the time that training steps take on this machine."""

import logging
import time
from itertools import chain, repeat

import torch
from mmdet.registry import MODELS
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.optim import build_optim_wrapper
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from .quiet import quiet


def train_loader(cfg: Config) -> DataLoader:
    """Build the data loader of a config's training data, without worker processes."""
    register_all_modules()
    return Runner.build_dataloader(
        dict(cfg.train_dataloader, num_workers=0, persistent_workers=False), seed=0
    )


def step_seconds(cfg: Config, loader: DataLoader, timed: int, warm_up: int = 1) -> list[float]:
    """Train a config's model on its data for some steps, and discard it.

    Args:
        cfg: The config. The ``init_cfg`` of its model is applied, its hooks are not.
        loader: Data loader of the config, see :func:`train_loader`.
        timed: Number of steps that are timed.
        warm_up: Number of steps before them. Defaults to 1.

    Returns:
        Seconds of each timed step, including the loading of its images.
    """
    with quiet(logging.WARNING):  # A line or two per parameter, whether trained or frozen.
        model = MODELS.build(cfg.model)
        model.init_weights()
        optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
    model.to(get_device()).train()
    batches = chain.from_iterable(repeat(loader))
    seconds = []
    for step in range(-warm_up, timed):
        start = time.perf_counter()
        model.train_step(next(batches), optim_wrapper)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if step >= 0:
            seconds.append(time.perf_counter() - start)
    return seconds
