"""MMDetection's own tools run on our configs as they are."""

import os
import re
import subprocess
import sys
from pathlib import Path

import cv2
import mmdet
import pytest
import torch
from mmdet.apis import DetInferencer
from mmdet.registry import MODELS
from mmengine.config import Config
from runs import CLASSES, CONFIG, write_data
from utils import ROOT, mmdet_script

from mmsmca.launch import run_script

DINO_CONFIG = f"""
_base_ = '{ROOT / 'configs/small/smca-dino_r18w16_1xb4-3ki_shapes192.py'}'
model = dict(num_queries=4, decoder=dict(num_layers=2), test_cfg=dict(max_per_img=4))
val_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False,
    dataset=dict(data_root='data/shapes128/'))
test_dataloader = val_dataloader
"""


@pytest.fixture(scope='module')
def run(tmp_path_factory) -> Path:
    """The folder of a short training run, with its data, log and checkpoint."""
    folder = tmp_path_factory.mktemp('run')
    write_data(folder / 'data/shapes128')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv('LOCAL_RANK', '0')
        Path('config.py').write_text(CONFIG)
        options = ['default_hooks.logger.interval=1', 'visualizer.name=trained']
        patch.setattr(sys, 'argv', ['train.py', 'config.py', '--cfg-options', *options])
        assert run_script('train') == 0
        Path('dino.py').write_text(DINO_CONFIG)
        model = Config.fromfile('dino.py').model
        meta = dict(dataset_meta=dict(classes=CLASSES))
        torch.save(dict(state_dict=MODELS.build(model).state_dict(), meta=meta), 'dino.pth')
    return folder


@pytest.mark.slow
def test_own_test_script(run: Path):
    """It imports MMDetection's models before it reads the config that imports mmsmca."""
    script = Path(mmdet.__file__).parent / '.mim/tools/test.py'
    environment = {k: v for k, v in os.environ.items() if k != 'LOCAL_RANK'}
    tested = subprocess.run(
        [sys.executable, '-m', 'mmsmca', script, 'config.py', 'work/epoch_1.pth'],
        capture_output=True,
        text=True,
        cwd=run,
        env={**environment, 'PYTHONPATH': str(ROOT)},
    )
    assert tested.returncode == 0, tested.stderr
    assert 'coco/bbox_mAP' in tested.stdout


@pytest.fixture
def start(run: Path, monkeypatch):
    """Runs one of MMDetection's tools in the folder of the run."""
    monkeypatch.chdir(run)

    def start_tool(name: str, *arguments: str) -> None:
        monkeypatch.setattr(sys, 'argv', [f'{name}.py', *arguments])
        mmdet_script(f'analysis_tools/{name}').main()

    return start_tool


def test_get_flops(start, capfd):
    start('get_flops', 'config.py', '--num-images', '1')
    printed = capfd.readouterr().out
    assert 'Input shape: (96, 128)' in printed
    assert re.search(r'Flops: \d', printed)
    assert 'Params: 1.' in printed


def test_get_flops_of_smca_dino(start, capfd):
    """All of them: the folded prior's are part of attention, which the counter knows."""
    start('get_flops', 'dino.py', '--num-images', '1')
    printed = capfd.readouterr().out
    assert 'Input shape: (72, 96)' in printed
    parameters = sum(p.numel() for p in MODELS.build(Config.fromfile('dino.py').model).parameters())
    assert f'Params: {parameters / 1e6:.3f}M' in printed
    assert re.search(r'Flops: \d', printed)


def test_browse_dataset(start, run: Path):
    start('browse_dataset', 'config.py', '--not-show', '--output-dir', 'browsed')
    assert sorted(path.name for path in (run / 'browsed').iterdir()) == ['0.jpg', '1.jpg', '2.jpg']


def test_analyze_logs(start, run: Path, capfd):
    (log,) = run.glob('work/*/vis_data/scalars.json')
    # A style of seaborn in mmdet 3.3; of matplotlib in onedl-mmdetection, whose default is not.
    style = 'dark' if mmdet.__version__.startswith('3.3.') else 'ggplot'
    keys = ('--keys', 'loss', 'bbox_mAP', '--style', style, '--backend', 'agg')
    start('analyze_logs', 'plot_curve', str(log), *keys, '--out', 'curves.png')
    assert (run / 'curves.png').stat().st_size > 1000
    start('analyze_logs', 'cal_train_time', str(log))
    assert 'average iter time' in capfd.readouterr().out


@pytest.mark.parametrize(
    ('config', 'checkpoint'), [('config.py', 'work/epoch_1.pth'), ('dino.py', 'dino.pth')]
)
def test_det_inferencer(config: str, checkpoint: str, run: Path, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(run)
    inferencer = DetInferencer(config, checkpoint, device='cpu', palette='none')
    images = ['data/shapes128/val/0.jpg', 'data/shapes128/val/1.jpg']
    predictions = inferencer(images, out_dir=str(tmp_path), pred_score_thr=0.0)['predictions']
    assert [len(prediction['scores']) for prediction in predictions] == [4, 4]
    assert tuple(inferencer.visualizer.dataset_meta['classes']) == CLASSES
    assert sorted(path.name for path in (tmp_path / 'vis').iterdir()) == ['0.jpg', '1.jpg']
    image, drawn = (
        cv2.imread(str(folder / '0.jpg'))
        for folder in (run / 'data/shapes128/val', tmp_path / 'vis')
    )
    assert image.shape == drawn.shape and (image != drawn).any()
