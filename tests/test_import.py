"""What ``import mmsmca`` demands of the environment, and what it lets ``torch.load`` read."""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from utils import ROOT

from mmsmca.checkpoints import safe_globals

SUPPORTED = {'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0'}


def import_error(folder: Path, modules: dict[str, str]) -> str:
    """Import mmsmca where ``modules`` (source by name) take the place of OpenMMLab's."""
    for name, source in modules.items():
        (folder / f'{name}.py').write_text(source)
    path = os.pathsep.join([str(folder), str(ROOT)])
    result = subprocess.run(
        [sys.executable, '-c', 'import mmsmca'],
        capture_output=True,
        text=True,
        env={**os.environ, 'PYTHONPATH': path},
    )
    assert result.returncode != 0
    return result.stderr.rstrip().splitlines()[-1]


@pytest.mark.parametrize(
    ('name', 'version'),
    [
        ('torch', '2.5.1'),
        ('torch', '3.0.0'),
        ('mmengine', '0.10.3'),
        ('mmengine', '1.0.0'),
        ('mmcv', '1.7.2'),
        ('mmcv', '3.0.0'),
        ('mmdet', '2.28.2'),
        ('mmdet', '3.2.0'),
        ('mmdet', '4.0.0'),
    ],
)
def test_unsupported_version(tmp_path, name, version):
    """The one line names the module, its version and what to install."""
    versions = {**SUPPORTED, name: version}
    line = import_error(tmp_path, {n: f'__version__ = {v!r}' for n, v in versions.items()})
    assert line.startswith(f'ImportError: mmsmca needs {name}')
    assert f'found {version}' in line
    assert "pip install 'mmsmca[lite]'" in line


@pytest.mark.parametrize('name', SUPPORTED)
def test_missing_module(tmp_path, name):
    modules = {n: f'__version__ = {v!r}' for n, v in SUPPORTED.items()}
    modules[name] = f'raise ModuleNotFoundError("No module named {name!r}")'
    line = import_error(tmp_path, modules)
    assert line.startswith(f'ImportError: mmsmca needs {name}')
    assert f"No module named '{name}'" in line
    assert "pip install 'mmsmca[lite]'" in line


def test_module_that_refuses_another(tmp_path):
    """mmdet 3.3.0 asserts mmcv < 2.2.0; its words become part of the one line."""
    modules = {n: f'__version__ = {v!r}' for n, v in SUPPORTED.items()}
    modules['mmdet'] = "assert False, 'MMCV==2.2.0 is used but\\nincompatible.'"
    line = import_error(tmp_path, modules)
    assert line.startswith('ImportError: mmsmca needs mmdet')
    assert 'MMCV==2.2.0 is used but incompatible.' in line
    assert "pip install 'mmsmca[lite]'" in line


@pytest.fixture(autouse=True)
def registered():
    """After whatever it loads (in another test), onedl-mmengine forgets what is safe."""
    safe_globals.register()


class Points(torch.utils.data.Dataset):
    """Eight points of a line; its meta information is of the kind that CocoDataset has."""

    metainfo = dict(classes=('disc', 'square'), palette=[(220, 50, 45), (50, 90, 225)])

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return torch.tensor([float(index)]), torch.tensor([2.0 * index])


class Slope(BaseModel):
    """Smallest model that MMEngine trains."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def forward(self, x: Tensor, y: Tensor, mode: str) -> dict[str, Tensor]:
        return dict(loss=(self.linear(x) - y).square().mean())


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What MMEngine's runner writes after two epochs, with everything that training uses here."""
    Runner(
        model=Slope(),
        work_dir=str(tmp_path),
        train_dataloader=torch.utils.data.DataLoader(Points(), batch_size=2),
        train_cfg=dict(by_epoch=True, max_epochs=2),
        optim_wrapper=dict(
            type='OptimWrapper', optimizer=dict(type='AdamW', lr=1e-4), clip_grad=dict(max_norm=0.1)
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3),
            dict(type='MultiStepLR', milestones=[1], gamma=0.1),
        ],
        custom_hooks=[dict(type='EMAHook')],
        default_scope='mmdet',
        cfg=Config(),
    ).train()
    return tmp_path / 'epoch_2.pth'


def test_checkpoints_load_with_weights_only(checkpoint):
    loaded = torch.load(checkpoint, weights_only=True)
    history = loaded['message_hub']['log_scalars']['train/loss']
    reference = torch.load(checkpoint, weights_only=False)['message_hub']['log_scalars']
    losses, counts = reference['train/loss'].data
    assert len(losses) == 8
    np.testing.assert_array_equal(history.data[0], losses)
    np.testing.assert_array_equal(history.data[1], counts)
    assert history.mean() == pytest.approx(losses.mean())
    assert loaded['meta']['dataset_meta'] == Points.metainfo


def test_nothing_else_makes_them_load(checkpoint):
    """Without our registration PyTorch refuses, so the module is still needed."""
    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer|_reconstruct'):
            torch.load(checkpoint, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(registered)
    assert torch.load(checkpoint, weights_only=True)['meta']['epoch'] == 2


class Getter:
    """Pickles as a call of ``getattr``, as a malicious checkpoint may."""

    def __init__(self, *arguments) -> None:
        self.arguments = arguments

    def __reduce__(self):
        return getattr, self.arguments


@pytest.mark.parametrize(
    'arguments',
    [
        (np.ndarray, 'tofile'),
        (safe_globals.HistoryBuffer, '__init__'),
        (safe_globals.OneCycleParamScheduler, 'step'),
        (np.zeros(1), 'tofile'),
    ],
)
def test_getattr_stays_closed(tmp_path, arguments):
    torch.save(Getter(*arguments), tmp_path / 'checkpoint.pth')
    with pytest.raises(pickle.UnpicklingError, match='a checkpoint may not take'):
        torch.load(tmp_path / 'checkpoint.pth', weights_only=True)
