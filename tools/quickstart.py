"""Train and evaluate SMCA-DINO on generated data, and draw detections; interrupted runs resume."""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import cv2
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.visualization import DetLocalVisualizer
from mmengine.config import Config
from mmengine.device import get_device

from mmsmca.engine.step_time import step_seconds, train_loader
from mmsmca.files import write_json

# The model is too small to gain much from two threads. Beside another busy program, two threads
# waiting for each other made a step seventeen times slower.
os.environ.setdefault('OMP_NUM_THREADS', '1')

ROOT = Path(__file__).resolve().parents[1]
CONFIG = ROOT / 'configs/small/smca-dino_r18w16_1xb4-2e_shapes128.py'
DATA_DIR = Path('data/shapes128')
TRAINING_IMAGES = 2000
WORK_DIR = Path('work_dirs/quickstart')
# Written last: its presence means that everything else is there.
RESULT = WORK_DIR / 'result.json'
PICTURES = WORK_DIR / 'detections'
NUM_PICTURES = 12
# Iterations timed for the estimate, after one for warm-up.
TIMED = 10


def run(tool: str, *args: str | Path) -> None:
    """Run one of the tools in this folder; if it fails, exit and print its status."""
    command = [sys.executable, ROOT / 'tools' / tool, *args]
    print('+', *command, flush=True)
    status = subprocess.run(command).returncode
    if status != 0:
        sys.exit(f'{tool} failed (exit status {status}); its message is above.')


def training_minutes(cfg: Config) -> float:
    """Estimate a config's training time on this machine from a few iterations, in minutes.

    These load their images in between; the training loads them in parallel.
    """
    # PyTorch read the variable before it was set above.
    torch.set_num_threads(int(os.environ['OMP_NUM_THREADS']))
    loader = train_loader(cfg)
    seconds = statistics.fmean(step_seconds(cfg, loader, TIMED))
    return seconds * len(loader) * cfg.train_cfg.max_epochs / 60


def last_checkpoint() -> Path:
    """Path of the checkpoint that MMEngine wrote last."""
    return Path((WORK_DIR / 'last_checkpoint').read_text())


def train_and_evaluate() -> None:
    """Generate the data, train, evaluate and write ``RESULT``."""
    start = time.monotonic()
    run('make_shapes.py', DATA_DIR, '--train', str(TRAINING_IMAGES))
    minutes = training_minutes(Config.fromfile(CONFIG))
    print(f'At this speed, the whole training takes about {minutes:.0f} minutes.', flush=True)
    run('train.py', CONFIG, '--work-dir', WORK_DIR, '--resume')
    test_dir = WORK_DIR / 'test'
    run('test.py', CONFIG, last_checkpoint(), '--work-dir', test_dir)
    draw_detections()
    print(f'Quick start: {(time.monotonic() - start) / 60:.1f} minutes')
    metrics = json.loads(max(test_dir.glob('*/*.json')).read_text())
    write_json(RESULT, metrics)


def draw_detections() -> None:
    """Draw the detections on some validation images, enlarged so that labels are legible."""
    model = init_detector(str(CONFIG), str(last_checkpoint()), device=get_device())
    visualizer = DetLocalVisualizer()
    visualizer.dataset_meta = model.dataset_meta
    for path in sorted((DATA_DIR / 'val').iterdir())[:NUM_PICTURES]:
        image = cv2.imread(str(path))
        image = cv2.resize(image, None, fx=4, fy=4, interpolation=cv2.INTER_NEAREST)
        visualizer.add_datasample(
            path.name,
            image[..., ::-1],
            inference_detector(model, image),
            draw_gt=False,
            pred_score_thr=0.3,
            out_file=str(PICTURES / path.name),
        )


def main() -> None:
    """Run what is missing, then print the results and where to find them."""
    if RESULT.exists():
        print(f'Already trained and evaluated; delete {WORK_DIR} to start over.')
    else:
        train_and_evaluate()
    metrics = json.loads(RESULT.read_text())
    for what, where in (
        ('box AP, IoU 0.50:0.95', metrics['coco/bbox_mAP']),
        ('box AP, IoU 0.50', metrics['coco/bbox_mAP_50']),
        ('data', DATA_DIR),
        ('config', CONFIG),
        ('checkpoint', last_checkpoint()),
        ('all metrics', RESULT),
        ('example detections', PICTURES),
    ):
        print(f'{what + ":":24}{where}')


if __name__ == '__main__':
    main()
