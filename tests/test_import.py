"""What ``import mmsmca`` demands of the environment, and what it lets ``torch.load`` read."""

import os
import pickle
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from torch import Tensor, nn
from utils import ROOT

from mmsmca import compat
from mmsmca.checkpoints import safe_globals

SUPPORTED = {'torch': '2.6.0', 'mmengine': '0.10.7', 'mmcv': '2.1.0', 'mmdet': '3.3.0'}


def check_environment(monkeypatch, **modules: str | Exception) -> None:
    """Check an environment with modules of these versions, or which fail to be imported."""

    def import_module(name: str) -> SimpleNamespace:
        version = {**SUPPORTED, **modules}[name]
        if isinstance(version, Exception):
            raise version
        return SimpleNamespace(__version__=version)

    monkeypatch.setattr(compat, 'importlib', SimpleNamespace(import_module=import_module))
    compat.check_openmmlab()


@pytest.mark.parametrize(
    ('name', 'versions'),
    [
        ('torch', ['2.5.1', '3.0.0']),
        ('mmengine', ['0.10.3', '1.0.0']),
        ('mmcv', ['1.7.2', '3.0.0']),
        ('mmdet', ['2.28.2', '3.2.0', '4.0.0', ImportError('gone'), AssertionError('MMCV\n2.2')]),
    ],
)
def test_unsupported_environment(monkeypatch, name: str, versions: list):
    """The one line names the module, its version or the error of its import, and the remedy."""
    check_environment(monkeypatch)
    for version in versions:
        with pytest.raises(ImportError, match=f'^mmsmca needs {name}[<>]') as info:
            check_environment(monkeypatch, **{name: version})
        assert ' '.join(str(version).split()) in str(info.value)
        assert "pip install 'mmsmca[lite]'" in str(info.value) and '\n' not in str(info.value)


def test_import_checks_the_environment(tmp_path):
    """mmdet 3.3.0 asserts mmcv < 2.2.0; its words become part of the one line."""
    (tmp_path / 'mmdet.py').write_text("assert False, 'MMCV==2.2.0 is used but incompatible.'")
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, '-c', 'import mmsmca']
    environment = {**os.environ, 'PYTHONPATH': path}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith('ImportError: mmsmca needs mmdet')
    assert 'MMCV==2.2.0 is used but incompatible.' in done.stderr


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
