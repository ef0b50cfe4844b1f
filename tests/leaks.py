"""Memory of a process that detects, or trains, on images whose size changes every time.

``python tests/leaks.py inference`` and ``python tests/leaks.py training`` print a list in JSON
every 100 or 50 iterations: iteration, objects that Python tracks (tensors among them), and MiB that
belong to this process alone, both after garbage was collected and free memory given back.
``--leak`` keeps one small tensor in every iteration, to see that it shows.

On a CPU, PyTorch convolves with oneDNN, which keeps something for every size of an image that it
has met. That is left out unless ``--onednn`` asks for it.
"""

import argparse
import ctypes
import gc
import json
import logging
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import torch
from mmcv.transforms import Compose
from mmdet.apis import inference_detector
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from utils import build_detector, load_config

from mmsmca.datasets.shapes import Shapes

CONFIG = 'small/smca_r18w16_1xb8-11e_shapes128.py'
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


class Memory:
    """What a process holds, measured now and then.

    Args:
        leak: Whether a small tensor is to be kept in every iteration.
    """

    def __init__(self, leak: bool) -> None:
        self.leak = leak
        self.leaked: list[torch.Tensor] = []
        self.process = psutil.Process()
        # The C library's; where it has no such function, freed memory shows as taken.
        self.give_back: Callable = getattr(ctypes.CDLL(None), 'malloc_trim', lambda pad: None)

    def after_iteration(self, number: int, every: int) -> None:
        """Measure and print at every so many iterations.

        Args:
            number: Of the iteration that ended, from 1.
            every: Distance of the measurements.
        """
        if self.leak:
            # As much as the decoder's output for one image.
            self.leaked.append(torch.ones(10, 128))
        if number % every == 0:
            gc.collect()
            self.give_back(0)
            mebibytes = self.process.memory_full_info().uss / 2**20
            measured = (number, len(gc.get_objects()), round(mebibytes, 2))
            print(json.dumps(measured), flush=True)


def detect(memory: Memory, iterations: int) -> None:
    """Detect on images of 32 to 128 pixels a side, by MMDetection's own function."""
    model = build_detector(CONFIG, MODEL).eval()
    model.cfg = load_config(CONFIG)
    resize = dict(type='Resize', scale=(128, 128), keep_ratio=True)
    pack = model.cfg.test_dataloader.dataset.pipeline[-1]
    pipeline = Compose([dict(type='mmdet.LoadImageFromNDArray'), resize, pack])
    rng = np.random.RandomState(0)
    for number in range(1, iterations + 1):
        height, width = rng.randint(32, 129, 2).tolist()
        pipeline.transforms[1].scale = (width, height)
        image = rng.randint(0, 256, (height, width, 3), np.uint8)
        inference_detector(model, image, test_pipeline=pipeline)
        memory.after_iteration(number, every=100)


def shrunk(value):
    """A pipeline with every size divided by ``SHRINK``."""
    if isinstance(value, dict):
        return {key: shrunk(child) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(map(shrunk, value))
    is_size = isinstance(value, int) and not isinstance(value, bool)
    return value // SHRINK if is_size else value


class MemoryHook(Hook):
    """Measures during training."""

    def __init__(self, memory: Memory) -> None:
        self.memory = memory

    def after_train_iter(self, runner: Runner, *args, **kwargs) -> None:
        self.memory.after_iteration(runner.iter + 1, every=50)


def train(memory: Memory, iterations: int, folder: Path) -> BaseModel:
    """Train on the shapes with the full-size recipe's augmentation, by MMEngine's runner."""
    Shapes(24, 1, size=96, max_objects=3, seed=0).write(folder / 'data')
    cfg = load_config(CONFIG)
    cfg.merge_from_dict(dict(model=MODEL))
    cfg.work_dir = str(folder / 'work')
    loader = cfg.train_dataloader
    loader.dataset.data_root = f'{folder / "data"}/'
    loader.dataset.pipeline = shrunk(load_config(RECIPE).train_dataloader.dataset.pipeline)
    loader.batch_size, loader.num_workers = 2, 0
    # Of an epoch's end `IterBasedTrainLoop` makes two seconds' sleep.
    loader.sampler = dict(type='InfiniteSampler')
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=iterations)
    cfg.param_scheduler = []
    cfg.log_processor.by_epoch = False
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, save_last=False)
    for key in ('dataloader', 'cfg', 'evaluator'):
        cfg[f'val_{key}'] = cfg[f'test_{key}'] = None
    runner = Runner.from_cfg(cfg)
    runner.register_hook(MemoryHook(memory))
    return runner.train()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('what', choices=['inference', 'training'])
    parser.add_argument('--iterations', type=int, help='defaults to 1000 and 300')
    parser.add_argument('--leak', action='store_true', help='keep a tensor in every iteration')
    parser.add_argument('--onednn', action='store_true', help='convolve with oneDNN')
    args = parser.parse_args()
    torch.backends.mkldnn.set_flags(args.onednn)
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    memory = Memory(args.leak)
    if args.what == 'inference':
        detect(memory, args.iterations or 1000)
    else:
        with tempfile.TemporaryDirectory() as folder:
            train(memory, args.iterations or 300, Path(folder))


if __name__ == '__main__':
    main()
