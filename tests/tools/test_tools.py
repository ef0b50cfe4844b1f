"""``tools/train.py`` and ``tools/test.py``: MMDetection's scripts behind the checks."""

import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from types import SimpleNamespace

import mmdet
import pytest
import torch
from mmengine.config import Config
from runs import CLASSES, CONFIG, run, save_checkpoint, write_data
from utils import ROOT

from mmsmca import launch
from mmsmca.errors import ConfigError
from mmsmca.launch import run_tool


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A working directory with ``config.py`` and its data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    Path('config.py').write_text(CONFIG)
    write_data(tmp_path / 'data/shapes')
    return tmp_path


def start(*command: str) -> subprocess.CompletedProcess:
    """Run a tool as a process of its own."""
    environment = {k: v for k, v in os.environ.items() if k != 'LOCAL_RANK'}
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, env=environment, timeout=300
    )


def error_line(stderr: str, tool: str) -> str:
    """The one line that a refused run ends with; there is no trace before it."""
    assert 'Traceback' not in stderr
    line = stderr.strip().splitlines()[-1]
    assert line.startswith(f'{tool}.py: error: ')
    return line


def test_training_and_evaluation(monkeypatch, capfd):
    assert run(monkeypatch, 'train', 'config.py') == 0
    assert Path('work/epoch_1.pth').is_file()
    assert run(monkeypatch, 'test', 'config.py', 'work/epoch_1.pth', '--work-dir', 'tested') == 0
    assert 'coco/bbox_mAP' in capfd.readouterr().out


@pytest.mark.parametrize(
    ('arguments', 'named'),
    [
        (['train', 'gone.py'], 'config gone.py does not exist'),
        (['train', 'config.py', '--resume', 'gone.pth'], 'gone.pth does not exist'),
        (['test', 'config.py', 'gone.pth'], 'gone.pth does not exist'),
        (
            ['train', 'config.py', '--cfg-options', 'train_dataloader.dataset.ann_file=gone.json'],
            'data/shapes/gone.json does not exist',
        ),
        (
            ['train', 'config.py', '--cfg-options', 'model.bbox_head.num_classes=80'],
            'model.bbox_head.num_classes is 80',
        ),
        (['test', 'config.py', 'other.pth'], 'checkpoint other.pth scores 80 classes'),
    ],
)
def test_refusals_leave_nothing_behind(monkeypatch, capfd, arguments: list[str], named: str):
    save_checkpoint(Path('other.pth'), classes=('person',), rows=80)
    before = sorted(Path().rglob('*'))
    assert run(monkeypatch, *arguments) == 2
    assert named in error_line(capfd.readouterr().err, arguments[0])
    assert sorted(Path().rglob('*')) == before


@pytest.mark.parametrize(
    ('classes', 'difference'),
    [
        (('person',), 'scores 1 classes, but model.bbox_head.num_classes is 6.'),
        (CLASSES[::-1], 'was trained on 6 classes, train_dataloader.dataset has 6; class 0 is'),
    ],
)
def test_fine_tuning_starts_the_classifier_fresh(monkeypatch, capfd, classes, difference: str):
    model = Config.fromfile('config.py').model
    load_from = save_checkpoint(Path('other.pth'), classes, rows=len(classes), model=model)
    options = [f'load_from={load_from}', 'optim_wrapper.optimizer.lr=0', 'val_evaluator=None']
    options += ['val_dataloader=None', 'val_cfg=None', 'default_hooks.checkpoint.save_best=None']
    assert run(monkeypatch, 'train', 'config.py', '--cfg-options', *options) == 0
    lines = [line for line in capfd.readouterr().out.splitlines() if 'starts fresh' in line]
    assert len(lines) == 1
    assert f'The classifier starts fresh: load_from {difference}' in lines[0]
    trained = torch.load('work/epoch_1.pth', weights_only=False)['state_dict']
    source = torch.load(load_from)['state_dict']
    for name, weight in source.items():
        if name.startswith('bbox_head.fc_cls'):
            assert weight.eq(0).all() and trained[name].ne(0).any()
        elif 'bn' not in name and 'downsample' not in name:
            assert torch.equal(trained[name], weight), name


def stand_in(monkeypatch, launcher: str = 'none', main=lambda: None) -> None:
    """Replace MMDetection's script."""
    args = Namespace(
        config='config.py', cfg_options=None, resume=None, work_dir=None, launcher=launcher
    )
    script = SimpleNamespace(parse_args=lambda: args, main=main)
    monkeypatch.setattr(launch, 'mmdet_script', lambda name: script)
    monkeypatch.setattr(launch.cpu, 'support', lambda cfg, args: None)


@pytest.mark.parametrize(
    ('launcher', 'variable'),
    [
        ('none', 'LOCAL_RANK'),
        ('pytorch', 'LOCAL_RANK'),
        ('slurm', 'SLURM_LOCALID'),
        ('mpi', 'OMPI_COMM_WORLD_LOCAL_RANK'),
    ],
)
def test_only_the_first_process_of_a_machine_checks(monkeypatch, launcher: str, variable: str):
    checked = []
    monkeypatch.setattr(launch, 'check_config', lambda cfg, phases: checked.append(phases))
    monkeypatch.setattr(launch, 'trial_step', lambda cfg: checked.append('trial'))
    stand_in(monkeypatch, launcher)
    monkeypatch.setenv(variable, '1')
    assert run_tool('train') == 0
    assert checked == []
    monkeypatch.setenv(variable, '0')
    assert run_tool('train') == 0
    assert checked == [('train', 'val'), 'trial']


def test_other_errors_keep_their_trace(monkeypatch):
    def main() -> None:
        raise ValueError('beta')

    stand_in(monkeypatch, main=main)
    with pytest.raises(ValueError, match='beta'):
        run_tool('train')


def test_corrupt_image_ends_training_by_its_name(monkeypatch, capfd):
    Path('data/shapes/train/1.jpg').write_bytes(b'junk')
    assert run(monkeypatch, 'train', 'config.py') == 2
    line = error_line(capfd.readouterr().err, 'train')
    assert 'data/shapes/train/1.jpg cannot be loaded' in line
    assert 'Restore the file' in line


def test_scripts_of_mmdetection_are_found(monkeypatch, folder: Path):
    assert callable(launch.mmdet_script('train').main)

    package = folder / 'checkout/mmdet'
    monkeypatch.setattr(mmdet, '__file__', str(package / '__init__.py'))
    with pytest.raises(ConfigError, match=f'{package} comes without its tools/test.py'):
        launch.mmdet_script('test')
    (folder / 'checkout/tools').mkdir(parents=True)
    (folder / 'checkout/tools/test.py').write_text('beside = True')
    assert launch.mmdet_script('test').beside


def test_script_prints_mmdetections_help():
    done = start(str(ROOT / 'tools/train.py'), '-h')
    assert done.returncode == 0
    assert 'usage: train.py' in done.stdout
    assert '--auto-scale-lr' in done.stdout


def test_script_names_corrupt_image_of_worker():
    Path('data/shapes/val/2.jpg').write_bytes(b'')
    checkpoint = save_checkpoint(Path('some.pth'), model=Config.fromfile('config.py').model)
    done = start(
        str(ROOT / 'tools/test.py'), 'config.py', checkpoint, '--cfg-options',
        'test_dataloader.num_workers=1',
    )  # fmt: skip
    assert done.returncode == 2
    assert 'data/shapes/val/2.jpg cannot be loaded' in error_line(done.stderr, 'test')


def test_script_under_torchrun():
    Path('data/shapes/annotations/instances_train.json').unlink()
    done = start(
        '-m', 'torch.distributed.run', '--nproc_per_node=1', '--master_port=29517',
        str(ROOT / 'tools/train.py'), 'config.py', '--launcher', 'pytorch',
    )  # fmt: skip
    assert done.returncode != 0
    assert 'train.py: error: train_dataloader.dataset.ann_file: annotation file' in done.stderr
    assert not Path('work').exists()
