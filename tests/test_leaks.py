"""Detecting and training on images of changing size takes no more memory the longer it goes on.

On a CPU, PyTorch convolves with oneDNN, which keeps something for every size of an image that it
has met: these measurements do without.
"""

import ctypes
import gc
from collections.abc import Callable

import numpy as np
import psutil
import pytest
import torch
from mmcv.transforms import Compose
from mmdet.apis import inference_detector
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from runs import SMALL, small_config
from utils import build_detector, load_config

from mmsmca.datasets.shapes import Shapes

pytestmark = pytest.mark.slow
MODEL = dict(
    num_queries=10,
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[64]),
    encoder=dict(num_layers=1),
    decoder=dict(num_layers=2),
)
# The full-size recipe's augmentation, crops and scales included, at a sixteenth of its sizes.
RECIPE = 'smca/smca_r50_8xb2-50e_coco.py'
SHRINK = 16


@pytest.fixture(autouse=True)
def without_onednn():
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def measure() -> np.ndarray:
    """Objects that Python tracks, and KiB of this process alone, without garbage."""
    gc.collect()
    # The C library's function; where it has none, freed memory shows as taken.
    getattr(ctypes.CDLL(None), 'malloc_trim', lambda pad: None)(0)
    return np.array([len(gc.get_objects()), psutil.Process().memory_full_info().uss / 2**10])


def growth(step: Callable[[], object], warm_up: int, steps: int) -> np.ndarray:
    """Objects and KiB that a step gains after ``warm_up`` ones."""
    for _ in range(warm_up):
        step()
    before = measure()
    for _ in range(steps):
        step()
    return (measure() - before) / steps


@pytest.fixture
def detect() -> Callable[[], object]:
    """Detects on an image of 32 to 128 pixels a side, by MMDetection's own function."""
    init_default_scope('mmdet')
    model = build_detector(SMALL, MODEL).eval()
    model.cfg = load_config(SMALL)
    resize = dict(type='Resize', scale=(128, 128), keep_ratio=True)
    pack = model.cfg.test_dataloader.dataset.pipeline[-1]
    pipeline = Compose([dict(type='mmdet.LoadImageFromNDArray'), resize, pack])
    rng = np.random.RandomState(0)

    def step() -> None:
        height, width = rng.randint(32, 129, 2).tolist()
        pipeline.transforms[1].scale = (width, height)
        image = rng.randint(0, 256, (height, width, 3), np.uint8)
        inference_detector(model, image, test_pipeline=pipeline)

    return step


# What a step may gain is less than the decoder's output for its images: 5 and 10 KiB.
def test_detecting(detect):
    objects, kibibytes = growth(detect, warm_up=100, steps=200)
    assert objects < 0.1
    assert kibibytes < 2.5


def test_a_leak_would_show(detect):
    """A tensor of a MiB in every step: gaps of the heap hold the first ones."""
    leaked = []
    objects, kibibytes = growth(lambda: leaked.append((detect(), torch.ones(2**18))), 20, 60)
    assert objects > 0.9
    assert kibibytes > 512


def shrunk(value):
    """A pipeline with every size divided by ``SHRINK``."""
    if isinstance(value, dict):
        return {key: shrunk(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(shrunk, value))
    is_size = isinstance(value, int) and not isinstance(value, bool)
    return value // SHRINK if is_size else value


class MeasureHook(Hook):
    """Measures after so many iterations of training."""

    def __init__(self, *iterations: int) -> None:
        self.iterations = iterations
        self.measured: list[np.ndarray] = []

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        if runner.iter + 1 in self.iterations:
            self.measured.append(measure())


def test_training(tmp_path):
    """On the shapes with the full-size recipe's augmentation, by MMEngine's runner."""
    Shapes(24, 1, size=96, max_objects=3, seed=0).write(tmp_path / 'data')
    cfg = small_config(tmp_path / 'data', model=MODEL, work_dir=str(tmp_path / 'work'))
    loader = cfg.train_dataloader
    loader.dataset.pipeline = shrunk(load_config(RECIPE).train_dataloader.dataset.pipeline)
    loader.batch_size = 2
    # Of an epoch's end `IterBasedTrainLoop` makes two seconds' sleep.
    loader.sampler = dict(type='InfiniteSampler')
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=200)
    cfg.param_scheduler = []
    cfg.log_processor.by_epoch = False
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, save_last=False)
    for key in ('dataloader', 'cfg', 'evaluator'):
        cfg[f'val_{key}'] = cfg[f'test_{key}'] = None
    runner = Runner.from_cfg(cfg)
    hook = MeasureHook(100, 200)
    runner.register_hook(hook)
    runner.train()
    before, after = hook.measured
    objects, kibibytes = (after - before) / 100
    assert objects < 0.1
    assert kibibytes < 8
