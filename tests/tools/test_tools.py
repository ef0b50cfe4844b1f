"""``tools/train.py`` and ``tools/test.py``: MMDetection's scripts behind the checks."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from runs import CLASSES, CONFIG, run, save_checkpoint
from scripts import run_python
from utils import ROOT

from mmsmca import launch

pytestmark = pytest.mark.usefixtures('folder')


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
            ['train', 'config.py', '--launcher', 'pytorch', '--cfg-options']
            + ['train_dataloader.dataset.ann_file=gone.json'],
            'data/shapes128/gone.json does not exist',
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
    line = error_line(capfd.readouterr().err, arguments[0])
    assert named in line and '--cfg-options runner_type=Runner starts without' in line
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


class StandIn:
    """In the place of MMEngine's runner."""

    started: list[Config] = []

    def __init__(self, cfg: Config) -> None:
        self.started.append(cfg)
        self.test_evaluator = SimpleNamespace(metrics=[])

    def train(self) -> None:
        pass

    test = train


@pytest.fixture
def started(monkeypatch) -> list[Config]:
    """Configs that a runner would get; nothing is checked."""
    monkeypatch.setattr(StandIn, 'started', [])
    monkeypatch.setattr(launch.Runner, 'from_cfg', StandIn)
    monkeypatch.setattr(launch.cpu, 'support_processes', lambda cfg, launcher: None)
    monkeypatch.setattr(launch, 'check_run', lambda cfg, script: None)
    return StandIn.started


@pytest.mark.parametrize(
    ('launcher', 'variable'),
    [
        ('none', 'LOCAL_RANK'),
        ('pytorch', 'LOCAL_RANK'),
        ('slurm', 'SLURM_LOCALID'),
        ('mpi', 'OMPI_COMM_WORLD_LOCAL_RANK'),
    ],
)
def test_only_the_first_process_of_a_machine_checks(
    monkeypatch, started, launcher: str, variable: str
):
    checked = []
    monkeypatch.setattr(launch, 'check_run', lambda cfg, script: checked.append(script))
    monkeypatch.setenv(variable, '1')
    assert run(monkeypatch, 'train', 'config.py', '--launcher', launcher) == 0
    assert checked == []
    monkeypatch.setenv(variable, '0')
    assert run(monkeypatch, 'train', 'config.py', '--launcher', launcher) == 0
    assert checked == ['train']
    assert [cfg.launcher for cfg in started] == [launcher] * 2


def test_other_errors_keep_their_trace(monkeypatch, started):
    def train(self) -> None:
        raise ValueError('beta')

    monkeypatch.setattr(StandIn, 'train', train)
    with pytest.raises(ValueError, match='beta'):
        run(monkeypatch, 'train', 'config.py')


def test_options_take_effect(monkeypatch, started):
    """Every flag of MMDetection's scripts; the runner gets what they set."""
    options = ['train_cfg.max_epochs=3', 'model.num_queries=7']
    assert run(monkeypatch, 'train', 'config.py', '--cfg-options', *options) == 0
    assert (
        run(monkeypatch, 'train', 'config.py', '--amp', '--work-dir', 'w', '--auto-scale-lr') == 0
    )
    assert run(monkeypatch, 'test', 'config.py', 'some.pth', '--show-dir', 'shown') == 0
    assert run(monkeypatch, 'test', 'config.py', 'some.pth', '--tta', '--out', 'found.pkl') == 0
    assert run(monkeypatch, 'test', 'config.py', 'some.pth', '--show', '--wait-time', '3') == 0
    plain, flags, drawn, augmented, shown = started
    assert (plain.train_cfg.max_epochs, plain.model.num_queries, plain.work_dir) == (3, 7, 'work')
    assert plain.optim_wrapper.get('type', 'OptimWrapper') == 'OptimWrapper'
    assert (flags.optim_wrapper.type, flags.work_dir) == ('AmpOptimWrapper', 'w')
    assert flags.auto_scale_lr == dict(enable=True, base_batch_size=8)
    hook = drawn.default_hooks.visualization
    assert (drawn.load_from, hook.draw, hook.test_out_dir) == ('some.pth', True, 'shown')
    assert (augmented.model.type, augmented.model.module.type) == ('DetTTAModel', 'SMCADETR')
    assert augmented.test_dataloader.dataset.pipeline[-1].type == 'TestTimeAug'
    assert shown.default_hooks.visualization.wait_time == 3


def test_with_nothing_to_resume_training_starts_from_load_from(monkeypatch, started):
    command = ('train', 'config.py', '--resume', '--cfg-options', 'load_from=start.pth')
    assert run(monkeypatch, *command) == 0
    Path('work').mkdir()
    Path('work/last_checkpoint').write_text('work/epoch_1.pth')
    assert run(monkeypatch, *command) == 0
    assert [(cfg.load_from, cfg.get('resume')) for cfg in started] == [
        ('start.pth', False),
        (None, True),
    ]


def test_auto_scaling_needs_the_batch_size(monkeypatch, started, capfd):
    Path('config.py').write_text(CONFIG + 'auto_scale_lr = dict(_delete_=True)\n')
    assert run(monkeypatch, 'train', 'config.py', '--auto-scale-lr') == 2
    assert 'auto_scale_lr.base_batch_size' in error_line(capfd.readouterr().err, 'train')
    assert not started


def test_test_time_augmentation(monkeypatch, capfd):
    checkpoint = save_checkpoint(Path('some.pth'), model=Config.fromfile('config.py').model)
    arguments = ['config.py', checkpoint, '--tta', '--out', 'found.pkl']
    assert run(monkeypatch, 'test', *arguments) == 0
    assert 'coco/bbox_mAP' in capfd.readouterr().out
    assert Path('found.pkl').is_file()


def test_config_without_a_scope(monkeypatch, started):
    """MMEngine would look for MMDetection's classes in its own registries."""
    cfg = Config.fromfile('config.py')
    cfg.pop('default_scope')
    cfg.dump('plain.py')
    assert run(monkeypatch, 'train', 'plain.py') == 0
    assert started[0].default_scope == 'mmdet'


def test_corrupt_image_ends_training_by_its_name(monkeypatch, capfd):
    Path('data/shapes128/train/1.jpg').write_bytes(b'junk')
    assert run(monkeypatch, 'train', 'config.py') == 2
    line = error_line(capfd.readouterr().err, 'train')
    assert 'data/shapes128/train/1.jpg cannot be loaded' in line
    assert 'Restore the file' in line


def test_script_prints_mmdetections_help():
    printed = run_python(ROOT / 'tools/train.py', '-h').stdout
    assert 'usage: train.py' in printed
    assert '--auto-scale-lr' in printed


def test_script_names_corrupt_image_of_worker():
    Path('data/shapes128/val/2.jpg').write_bytes(b'')
    checkpoint = save_checkpoint(Path('some.pth'), model=Config.fromfile('config.py').model)
    options = ['--cfg-options', 'test_dataloader.num_workers=1']
    done = run_python(ROOT / 'tools/test.py', 'config.py', checkpoint, *options, code=2)
    assert 'data/shapes128/val/2.jpg cannot be loaded' in error_line(done.stderr, 'test')
