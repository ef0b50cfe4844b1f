"""Checkpoints that a run cannot start from are refused, with file and remedy."""

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from runs import CLASSES, HEAD_WEIGHT, Payload, model_state, save_checkpoint, shapes_state

from mmsmca import launch
from mmsmca.checks.preflight import check_config
from mmsmca.errors import ConfigError


def without(name: str) -> Callable:
    return lambda state: state.pop(name)


def replaced(name: str, *shape: int, value: float = 0.0) -> Callable:
    return lambda state: state.update({name: torch.full(shape, value)})


# name: (change of a good state dict, whether to resume, words of the message)
WEIGHTS = {
    'NaN': (replaced('backbone.bn1.bias', 16, value=math.nan), False, ['NaN', 'backbone.bn1.bias']),
    'infinity': (
        replaced('backbone.bn1.bias', 16, value=math.inf),
        True,
        ['backbone.bn1.bias', 'earlier checkpoint'],
    ),
    'a weight less': (
        without('decoder.center_head.layers.0.bias'),
        False,
        ['decoder.center_head.layers.0.bias is missing', '(128,)', 'Use the config'],
    ),
    'more queries': (
        replaced('query_embedding.weight', 300, 128),
        True,
        ['query_embedding.weight', '(300, 128)', '(25, 128)', 'work directory'],
    ),
}


@pytest.mark.parametrize('case', WEIGHTS)
def test_weights(case: str, cfg: Config, tmp_path: Path, refused):
    change, resume, words = WEIGHTS[case]
    state = dict(shapes_state())
    change(state)
    cfg.load_from = save_checkpoint(tmp_path / 'some.pth', state_dict=state)
    cfg.resume = resume
    refused(ConfigError, 'train' if resume else 'test', cfg.load_from, *words)


# What a file may hold instead of a checkpoint, and what is said of it
FILES = {
    'nothing': (b'', ['truncated', 'Copy it again']),
    'start of a file': (b'PK\3\4' + bytes(96), ['truncated', 'Copy it again']),
    'an image': (b'\xff\xd8\xff\xe0junk', ['not a PyTorch checkpoint']),
    'a list': ([torch.zeros(2)], ['holds a list', 'Specify a checkpoint']),
    'no weights': (dict(meta=None), ['weights of', 'Specify a checkpoint']),
    'weights that are a list': (dict(state_dict=[torch.zeros(2)]), ["a list as 'state_dict'"]),
    'reference': (
        dict(model={'class_embed.weight': torch.zeros(91, 8)}),
        ['tools/convert_checkpoint.py', 'Specify a checkpoint'],
    ),
    'another model': (
        dict(state_dict={'roi_head.fc.weight': torch.zeros(2)}),
        ['no weights of SMCADETR', 'Specify a checkpoint'],
    ),
    'other number of classes': (
        {f'module.{HEAD_WEIGHT}': torch.zeros(80, 8)},
        ['80 classes', 'model.bbox_head.num_classes is 6', 'Use a checkpoint'],
    ),
    'other number of classes of a DINO': (
        {'bbox_head.cls_branches.0.weight': torch.zeros(80, 8)},
        ['80 classes', 'model.bbox_head.num_classes is 6'],
    ),
    'code': (dict(state_dict={}, payload=Payload()), ['Path', 'Save its weights alone']),
}


@pytest.mark.parametrize('case', FILES)
def test_file(case: str, cfg: Config, tmp_path: Path, refused, monkeypatch):
    content, words = FILES[case]
    monkeypatch.chdir(tmp_path)
    cfg.load_from = str(tmp_path / 'file.pth')
    if isinstance(content, bytes):
        Path(cfg.load_from).write_bytes(content)
    else:
        torch.save(content, cfg.load_from)
    refused(ConfigError, 'test', cfg.load_from, *words)
    assert not Path('executed').exists()


def test_paths_that_are_no_file(cfg: Config, tmp_path: Path, refused):
    cfg.load_from = str(tmp_path)
    refused(ConfigError, 'test', f'checkpoint {tmp_path} is a folder', 'Give the path')
    cfg.load_from = str(tmp_path / 'gone.pth')
    refused(ConfigError, 'test', cfg.load_from, 'does not exist', 'Give the path')
    for url in ('https://host/x.pth', 's3://b/x.pth', 'torchvision://resnet50'):
        cfg.load_from = url
        check_config(cfg, ('test',))


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (None, ['does not exist', 'Give the path']),
        (b'junk', ['cannot be read', 'Copy it again']),
        (dict(payload=Payload()), ['Path', 'Save its weights alone']),
    ],
    ids=['missing', 'junk', 'code'],
)
def test_backbone(content: object, words: list[str], cfg: Config, tmp_path: Path, refused):
    path = tmp_path / 'backbone.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    refused(ConfigError, 'train', f'model.backbone.init_cfg: checkpoint {path}', *words)
    check_config(cfg, ('test',))  # which starts from the weights of the whole model
    torch.save(dict(state_dict={}), path)
    check_config(cfg, ('train',))


def test_good_checkpoint_passes(cfg: Config, tmp_path: Path, untouched):
    """Also with its log and a palette of bytes, whatever was loaded before."""
    history = HistoryBuffer()
    history.update(0.5)
    meta = dict(dataset_meta=dict(classes=CLASSES, palette=np.zeros((6, 3), np.uint8)))
    hub = dict(loss=history)
    cfg.load_from = save_checkpoint(tmp_path / 'good.pth', message_hub=hub, meta=meta)
    CheckpointLoader.load_checkpoint(cfg.load_from)
    with untouched():
        check_config(cfg, ('train', 'val'))
        check_config(cfg, ('test',))


def test_head_that_scores_no_object_too(cfg: Config, tmp_path: Path, refused):
    cfg.model.bbox_head.loss_cls = ConfigDict(type='CrossEntropyLoss', use_sigmoid=False)
    cfg.load_from = save_checkpoint(tmp_path / 'softmax.pth', rows=7)
    check_config(cfg, ('test',))
    cfg.load_from = save_checkpoint(tmp_path / 'sigmoid.pth', rows=6)
    refused(ConfigError, 'test', 'scores 5 classes')


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=CLASSES[::-1])),
        dict(dataset_meta=dict(CLASSES=CLASSES[::-1])),
        dict(CLASSES=list(CLASSES[::-1])),
    ],
)
def test_other_classes(cfg: Config, tmp_path: Path, meta: dict, refused):
    cfg.load_from = save_checkpoint(tmp_path / 'other.pth', meta=meta)
    words = cfg.load_from, 'test_dataloader.dataset', "'ring' there and 'disc' here"
    refused(ConfigError, 'test', *words)


@pytest.mark.parametrize('classes', [('person',), CLASSES[::-1]])
def test_fine_tuning_on_other_classes(
    cfg: Config, tmp_path: Path, classes: tuple[str, ...], refused
):
    cfg.load_from = save_checkpoint(tmp_path / 'other.pth', classes, rows=len(classes))
    check_config(cfg, ('train', 'val'))
    cfg.resume = True
    refused(ConfigError, 'train', cfg.load_from, 'Use a checkpoint of a model')


def test_fine_tuning_of_another_model(cfg: Config, tmp_path: Path):
    state = dict(shapes_state())
    state['query_embedding.weight'] = torch.zeros(300, 128)
    del state['decoder.center_head.layers.0.bias']
    cfg.load_from = save_checkpoint(tmp_path / 'some.pth', state_dict=state)
    check_config(cfg, ('train', 'val'))


def test_resuming_from_what_a_run_leaves(cfg: Config, tmp_path: Path, refused):
    """MMEngine writes the best checkpoint without optimizer, and both files in place."""
    cfg.resume = True
    cfg.load_from = save_checkpoint(tmp_path / 'epoch_1.pth')
    check_config(cfg, ('train',))
    Path(cfg.load_from).write_bytes(Path(cfg.load_from).read_bytes()[:-1])
    refused(ConfigError, 'train', cfg.load_from, 'truncated', '--resume PATH')
    content = torch.load(save_checkpoint(tmp_path / 'best.pth'), weights_only=True)
    cfg.load_from = str(tmp_path / 'best_mAP_epoch_1.pth')
    del content['optimizer'], content['param_schedulers']
    torch.save(content, cfg.load_from)
    words = 'lacks optimizer, param_schedulers', 'epoch_*.pth', 'leave out --resume'
    refused(ConfigError, 'train', cfg.load_from, *words)
    cfg.load_from = ''
    refused(ConfigError, 'train', 'last_checkpoint', 'is empty', '--resume PATH')


def test_classes_of_unlike_datasets_are_not_compared(cfg: Config, tmp_path: Path):
    meta = dict(dataset_meta=[dict(classes=('a',)), dict(classes=('b',))])
    cfg.load_from = save_checkpoint(tmp_path / 'concat.pth', meta=meta)
    check_config(cfg, ('test',))


def test_wrapped_models_name_their_weights_otherwise(cfg: Config, tmp_path: Path):
    cfg.model = ConfigDict(type='SoftTeacher', detector=cfg.model, semi_train_cfg={})
    state = model_state(cfg.model)
    assert 'student.bbox_head.fc_cls.weight' in state
    cfg.load_from = save_checkpoint(tmp_path / 'student.pth', state_dict=state)
    check_config(cfg, ('test',))


@pytest.mark.parametrize('named', [True, False])
def test_the_checkpoint_of_a_run(named: bool, tmp_path: Path, monkeypatch):
    """The checks know the checkpoint that MMEngine's runner will find."""
    monkeypatch.chdir(tmp_path)
    cfg = Config(dict(work_dir='w', load_from='a.pth' if named else None, resume=True))
    Path('w').mkdir()
    if not named:
        checked = launch._with_checkpoint(cfg)
        assert (checked.load_from, checked.resume) == (None, False)
    Path('w/last_checkpoint').write_text('w/epoch_3.pth')
    checked = launch._with_checkpoint(cfg)
    assert (checked.load_from, checked.resume) == ('a.pth' if named else 'w/epoch_3.pth', True)
    assert cfg.load_from == ('a.pth' if named else None)
