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
from mmengine.runner import Runner
from one_parameter import Numbers, config
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


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """What MMEngine's runner writes in the end, with everything that training uses here."""
    schedulers = [
        dict(type='LinearLR', start_factor=0.1, by_epoch=False, begin=0, end=3),
        dict(type='MultiStepLR', milestones=[1], gamma=0.1),
    ]
    optimizer = dict(type='AdamW', lr=1e-4)
    cfg = config(
        tmp_path,
        schedulers,
        optim_wrapper=dict(optimizer=optimizer, clip_grad=dict(max_norm=0.1)),
        custom_hooks=[dict(type='EMAHook')],
    )
    Runner.from_cfg(cfg).train()
    return tmp_path / 'epoch_4.pth'


def test_checkpoints_load_with_weights_only(checkpoint):
    loaded = torch.load(checkpoint, weights_only=True)
    history = loaded['message_hub']['log_scalars']['train/loss']
    reference = torch.load(checkpoint, weights_only=False)['message_hub']['log_scalars']
    losses, counts = reference['train/loss'].data
    assert len(losses) == 32
    np.testing.assert_array_equal(history.data[0], losses)
    np.testing.assert_array_equal(history.data[1], counts)
    assert history.mean() == pytest.approx(losses.mean())
    assert loaded['meta']['dataset_meta'] == Numbers.metainfo


def test_nothing_else_makes_them_load(checkpoint):
    """Without our registration PyTorch refuses, so the module is still needed."""
    registered = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        with pytest.raises(pickle.UnpicklingError, match='HistoryBuffer|_reconstruct'):
            torch.load(checkpoint, weights_only=True)
    finally:
        torch.serialization.add_safe_globals(registered)
    assert torch.load(checkpoint, weights_only=True)['meta']['epoch'] == 4


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
