"""Wrong inputs, one a row: what is said, with which exit code, and that no file was touched.

Further rows stand beside what they are about: paths, categories, checkpoints and unreadable images
in ``test_preflight.py``, the converter's in ``test_checkpoints.py``, keys of the model in
``test_models.py`` and ``test_multi_scale.py``, processes of their own in ``test_tools.py``.
"""

# ruff: noqa: F811  (fixtures that another file defines)

import hashlib
import json
import math
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from PIL import Image
from runs import (
    CONFIG,
    Payload,
    assert_names,
    coco,
    model_state,
    on_data,
    run,
    save_checkpoint,
    shapes_state,
    train_args,
    write_data,
    write_json,
)
from utils import ROOT, load_config

from mmsmca.checks.config import load_config as checked_file
from mmsmca.checks.load_image import LoadImage
from mmsmca.checks.preflight import check_config, check_run
from mmsmca.errors import ConfigError, DataError

PRIOR = 'model.decoder.layer_cfg.spatial_prior_cfg'
ATTENTION = 'model.decoder.layer_cfg.cross_attn_cfg'
RIVAL = load_config('small/detr_r18w16_1xb4-3ki_shapes192.py').model
RIVAL.test_cfg = dict(max_per_img=100)
ENCODER_ATTENTION = 'model.encoder.layer_cfg.self_attn_cfg'


@contextmanager
def untouched(folder: Path) -> Iterator[None]:
    """What lies in a folder is the same afterwards, to the byte, and nothing came to it."""

    def content() -> dict[Path, str]:
        return {
            path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''
            for path in folder.rglob('*')
        }

    before = content()
    yield
    assert content() == before


def refusal(kind: type[Exception], cfg: Config, phases: str | tuple[str, ...], folder: Path) -> str:
    """The one line with which a config is refused; nothing below the folder has changed."""
    with untouched(folder), pytest.raises(kind) as caught:
        check_run(cfg, phases) if isinstance(phases, str) else check_config(cfg, phases)
    message = str(caught.value)
    assert '\n' not in message
    return message


# Values of a config ------------------------------------------------------------------------------

# name: (changed keys, phase, words of the message)
VALUES = {
    'no model': ({'model': None}, 'train', ["no key 'model'", 'complete config']),
    'no optimiser': ({'optim_wrapper': None}, 'train', ['no optim_wrapper', 'inherit']),
    'no training data': ({'train_dataloader': None}, 'train', ['no train_dataloader', 'Set it']),
    'no evaluator': ({'test_evaluator': None}, 'test', ['no test_evaluator', 'inherit']),
    'validation by halves': ({'val_cfg': None}, 'val', ['no val_cfg', 'Set it']),
    'no images a batch': (
        {'train_dataloader.batch_size': 0},
        'train',
        ['train_dataloader or train_cfg', 'batch_size should be a positive', 'batch_size=0'],
    ),
    'batch size in quotes': (
        {'train_dataloader.batch_size': '8'},
        'train',
        ["train_dataloader.batch_size is '8'", 'integer'],
    ),
    'persistent workers without workers': (
        {'val_dataloader.num_workers': 0},
        'val',
        ['val_dataloader', 'persistent_workers option needs num_workers > 0'],
    ),
    'unknown detector': (
        {'model.type': 'SMCADETRR'},
        'test',
        ['model.type: nothing is called SMCADETRR; did you mean SMCADETR?'],
    ),
    'negative number of queries': (
        {'model.num_queries': -1},
        'train',
        ['model fails', 'num_queries=-1', 'Correct the config'],
    ),
    'unknown depth': ({'model.backbone.depth': 19}, 'train', ['invalid depth 19 for resnet']),
    'unknown loss': (
        {'model.bbox_head.loss_cls.type': 'FocalLos'},
        'train',
        ['model.bbox_head.loss_cls.type', 'did you mean FocalLoss?'],
    ),
    'unknown scale': (
        {f'{PRIOR}.scale': 'gaussian'},
        'train',
        ['spatial_prior_cfg.scale', 'fixed'],
    ),
    'negative beta': ({f'{PRIOR}.beta': -8.0}, 'test', ['spatial_prior_cfg.beta=-8.0', 'positive']),
    'heads that do not divide': (
        {f'{ATTENTION}.num_heads': 7},
        'train',
        ['num_heads=7', 'embed_dims=128'],
    ),
    'unknown implementation': (
        {f'{ATTENTION}.implementation': 'flash'},
        'train',
        ['cross_attn_cfg.implementation', "'folded'"],
    ),
    'strides of another backbone': (
        {'model.strides': [32]},
        'train',
        ['model.strides=[32]', 'Set it to [16]'],
    ),
    'wrong position encoding': (
        {'model.positional_encoding.num_feats': 128},
        'train',
        ['positional_encoding.num_feats=128', 'embed_dims=128'],
    ),
    'unknown layer kind': (
        {'model.encoder.layer_kinds': ['intra', 'inter']},
        'train',
        ['encoder.layer_kinds', "'multi'"],
    ),
    'class listed twice': (
        {'train_dataloader.dataset.metainfo.classes': ('disc', 'disc')},
        'train',
        ['train_dataloader.dataset.metainfo.classes', 'disc more than once', 'List every'],
    ),
    'more detections than a rival has': (
        {'model': RIVAL | dict(num_queries=10, _delete_=True)},
        'train',
        ['the first validation fails in model.bbox_head', 'index k out of range'],
    ),
    'zero interval': (
        {'default_hooks.logger.interval': 0},
        'train',
        ['default_hooks.logger.interval is 0', 'from 1'],
    ),
    'no interval of the validation': (
        {'train_cfg.val_interval': 0},
        'train',
        ['train_cfg.val_interval is 0', 'from 1'],
    ),
    'epochs in quotes': ({'train_cfg.max_epochs': '3'}, 'train', ["train_cfg.max_epochs is '3'"]),
    'unknown hook': (
        {'default_hooks.checkpoint.type': 'CheckpointHok'},
        'train',
        ['default_hooks.checkpoint.type', 'CheckpointHok; did you mean CheckpointHook?'],
    ),
    'unknown transform': (
        {'train_dataloader.dataset.pipeline.2.type': 'Resise'},
        'train',
        ['train_dataloader.dataset.pipeline.2.type', 'did you mean Resize?'],
    ),
    'misspelt hook': (
        {'default_hooks.checkpont': dict(interval=1)},
        'train',
        ['default_hooks fails', 'must contain the key "type"', 'interval'],
    ),
    'clipping to nothing': (
        {'optim_wrapper.clip_grad.max_norm': 0},
        'train',
        ['optim_wrapper.clip_grad.max_norm is 0', 'positive'],
    ),
    'classes misspelt': (
        {'train_dataloader.dataset.metainfo.clases': ('disc',)},
        'train',
        ['train_dataloader.dataset.metainfo.clases', 'Rename it to classes'],
    ),
    'images misspelt': (
        {'train_dataloader.dataset.data_prefix.image': 'train/'},
        'train',
        ['train_dataloader.dataset.data_prefix has', 'image, img', "must have 'img'"],
    ),
    'unknown constructor': (
        {'optim_wrapper.constructor': 'GroupedOptimWrapper'},
        'train',
        ['optim_wrapper.constructor', 'did you mean GroupedOptimWrapperConstructor?'],
    ),
    'misspelt level of the log': ({'log_level': 'INFOO'}, 'test', ['log_level fails', 'INFOO']),
    'negative seed': (
        {'randomness': dict(seed=-1)},
        'train',
        ['randomness fails', 'between 0 and'],
    ),
    'determinism in words': (
        {'randomness': dict(seed=0, deterministic='yes')},
        'train',
        ["randomness.deterministic is 'yes'", 'true or false'],
    ),
    'strategy of another runner': (
        {'strategy': dict(type='DDPStrategy')},
        'train',
        ["strategy: MMEngine's Runner does not read it", 'Leave it out'],
    ),
}

# Keys that nothing reads, down to the leaves: (key, value, the name that was meant)
MISSPELT = [
    ('train_dataloader.batchsize', 2, 'batch_size'),
    ('train_dataloader.sampler.shufle', True, 'shuffle'),
    ('train_dataloader.dataset.filter_cfg.filter_empty_gts', True, 'filter_empty_gt'),
    ('train_dataloader.dataset.filter_cfg.min_sise', 32, 'min_size'),
    ('train_dataloader.dataset.pipeline.2.scales', (64, 64), 'scale'),
    ('val_dataloader.num_worker', 0, 'num_workers'),
    ('val_evaluator.ann_files', 'a.json', 'ann_file'),
    ('optim_wrapper.clip_gradd', dict(max_norm=1), 'clip_grad'),
    ('optim_wrapper.clip_grad.max_nrom', 1, 'max_norm'),
    ('optim_wrapper.optimizer.weight_decy', 0.1, 'weight_decay'),
    ('optim_wrapper.paramwise_cfg', dict(_delete_=True, norm_decay_mul=0), 'norm_decay_mult'),
    (
        'optim_wrapper.paramwise_cfg',
        dict(_delete_=True, custom_keys=dict(backbonee={})),
        'backbone',
    ),
    (
        'optim_wrapper.paramwise_cfg',
        dict(_delete_=True, custom_keys=dict(backbone=dict(lr_mul=0.1))),
        'lr_mult',
    ),
    ('param_scheduler.1.milestone', [1], 'milestones'),
    ('default_hooks.checkpoint.intervall', 1, 'interval'),
    ('default_hooks.logger.intervall', 1, 'interval'),
    ('train_cfg.max_epoch', 3, 'max_epochs'),
    ('log_processor.windw_size', 3, 'window_size'),
    ('visualizer.vis_backend', [], 'vis_backends'),
    ('env_cfg.mp_cfg.mp_start_methd', 'fork', 'mp_start_method'),
    ('env_cfg.cudnn_benchmrk', True, 'cudnn_benchmark'),
    ('randomness.sed', 1, 'seed'),
    ('auto_scale_lr.base_batchsize', 16, 'base_batch_size'),
    ('custom_hook', [], 'custom_hooks'),
    ('model_wrapper_cfg.find_unused_parameter', True, 'find_unused_parameters'),
    ('compile.bakend', 'eager', 'backend'),
    ('model.test_cfg.max_per_image', 5, 'max_per_img'),
    ('model.train_cfg.assigners', {}, 'assigner'),
    ('model.encoder.num_layer', 1, 'num_layers'),
    ('model.num_query', 1, 'num_queries'),
    ('model.decoder.layer_cfg.spatial_prior_cfg.betas', 1, 'beta'),
    ('model.decoder.layer_cfg.ffn_cfg.feedforward_channel', 1, 'feedforward_channels'),
]


@pytest.mark.parametrize('case', VALUES)
def test_value_of_a_config(case: str, cfg: Config, tmp_path: Path):
    changes, phase, words = VALUES[case]
    for key, value in changes.items():
        if value is None:
            cfg.pop(key)
        else:
            cfg.merge_from_dict({key: value})
    assert_names(
        refusal(ConfigError, cfg, 'test' if phase == 'test' else 'train', tmp_path), *words
    )


@pytest.mark.parametrize('key', MISSPELT, ids=lambda case: case[0])
def test_key_that_nothing_reads(key: tuple, cfg: Config, tmp_path: Path):
    place, value, meant = key
    cfg.merge_from_dict({place: value})
    message = refusal(ConfigError, cfg, 'train', tmp_path)
    assert_names(message, place.split('.')[-1], f'did you mean {meant}?')


def test_key_of_the_denoising_that_nothing_reads(root: Path, tmp_path: Path):
    cfg = on_data(load_config('small/smca-dino_r18w16_1xb4-3ki_shapes192.py'), root)
    cfg.model.dn_cfg.group_cfg['num_dn_querys'] = 10
    message = refusal(ConfigError, cfg, 'train', tmp_path)
    assert_names(message, 'model.dn_cfg.group_cfg.num_dn_querys', 'did you mean num_dn_queries?')


# Config files and options ------------------------------------------------------------------------

# name: (text of the config, options, words of the message)
FILES = {
    'syntax': ('model = dict(', {}, ['bad.py cannot be read', 'Correct the file']),
    'base that is not there': ("_base_ = 'gone.py'", {}, ['gone.py', 'inherits']),
    'import that is not there': (
        "custom_imports = dict(imports=['mmsmcaa'])",
        {},
        ['bad.py cannot be read', 'mmsmcaa'],
    ),
    'code that fails': ('a = 1 / 0', {}, ['ZeroDivisionError', 'Correct the file']),
    'misspelt section': (
        'train_dataloader = dict()',
        {'train_dataloder.batch_size': 2},
        ['--cfg-options train_dataloder.batch_size', 'did you mean train_dataloader?'],
    ),
    'unknown section': ('a = 1', {'qqq': 2}, ['--cfg-options qqq', 'Correct the name']),
    'key below a number': (
        'train_cfg = dict(max_epochs=3)',
        {'train_cfg.max_epochs.x': 2},
        ['--cfg-options train_cfg.max_epochs.x=2', 'print_config'],
    ),
    'place outside a list': (
        'custom_hooks = [dict(a=1)]',
        {'custom_hooks.3.a': 2},
        ['--cfg-options custom_hooks.3.a=2', 'Correct the key'],
    ),
    'number that is used up': (
        'max_epochs = 7\ntrain_cfg = dict(max_epochs=max_epochs)\n'
        'param_scheduler = [dict(end=max_epochs)]\nmodel = dict(num_heads=7)',
        {'max_epochs': 5},
        ['max_epochs is a variable', 'Set', ': train_cfg.max_epochs, param_scheduler.0.end.'],
    ),
    'path that is used up': (
        "root = '/data/'\nval_evaluator = dict(ann_file=root + 'val.json')",
        {'root': '/nowhere/'},
        ['root is a variable', 'val_evaluator.ann_file'],
    ),
    'part of a dict that is used up': (
        'info = dict(classes=1)\ntrain_dataloader = dict(dataset=dict(metainfo=info))',
        {'info.classes': 2},
        ['info is a variable', 'train_dataloader.dataset.metainfo'],
    ),
    'variable of no effect': ('a = 1', {'a': 2}, ['a is a variable', 'Leave it out']),
}


@pytest.mark.parametrize('case', FILES)
def test_config_file_or_option(case: str, tmp_path: Path):
    text, options, words = FILES[case]
    (tmp_path / 'bad.py').write_text(text)
    with untouched(tmp_path), pytest.raises(ConfigError) as caught:
        checked_file(train_args(str(tmp_path / 'bad.py'), cfg_options=options))
    assert '\n' not in str(caught.value)
    assert_names(str(caught.value), *words)


# Annotation files --------------------------------------------------------------------------------


def annotation(**values: object):
    return lambda content: content['annotations'][1].update(values)


def image(**values: object):
    return lambda content: content['images'][1].update(values)


# name: (change of a good file, words of the message)
ANNOTATIONS = {
    'NaN in a box': (
        annotation(bbox=[8, math.nan, 64, 48]),
        ['annotations[1].bbox', 'id 2'],
    ),
    'infinite box': (annotation(bbox=[8, 8, math.inf, 48]), ['annotations[1].bbox', 'finite']),
    'box of three numbers': (annotation(bbox=[8, 8, 64]), ['annotations[1].bbox', 'four']),
    'box of words': (annotation(bbox=['8', '8', '64', '48']), ['annotations[1].bbox', 'width']),
    'box that is null': (annotation(bbox=None), ['annotations[1].bbox is None', 'four']),
    'NaN as area': (annotation(area=math.nan), ['annotations[1].area is nan', 'finite']),
    'area of words': (annotation(area='large'), ["annotations[1].area is 'large'", 'Correct']),
    'category that is null': (annotation(category_id=None), ['annotations[1].category_id is None']),
    'category that is not listed': (annotation(category_id=99), ['category ids 99', 'Add them']),
    'image that is a list': (annotation(image_id=[1]), ['annotations[1].image_id is [1]']),
    'annotation id twice': (annotation(id=1), ["'annotations' with the same id: 1", 'unique id']),
    'image id twice': (image(id=0), ["'images' with the same id: 0", 'Give each a unique id']),
    'category id twice': (
        lambda content: content['categories'][1].update(id=1),
        ["'categories' with the same id: 1", 'Give each a unique id'],
    ),
    'category name twice': (
        lambda content: content['categories'].append(dict(id=7, name='disc')),
        ['several categories named disc', 'Merge them'],
    ),
    'image without width': (image(width=0), ['images[1].width is 0', 'positive']),
    'image of negative height': (image(height=-96), ['images[1].height is -96', 'positive']),
    'image of NaN pixels': (image(height=math.nan), ['images[1].height is nan', 'positive']),
    'width in quotes': (image(width='128'), ["images[1].width is '128'", 'number of pixels']),
    'image without a name': (image(file_name=''), ["images[1].file_name is ''", 'a path']),
    'image named by a number': (image(file_name=1), ['images[1].file_name is 1', 'a path']),
    'boxes as corners': (
        lambda content: [
            a.update(bbox=[40, 40, 120, 90], area=4000) for a in content['annotations']
        ],
        ['all 3 boxes look like corners', '3 of them extend', 'x2 - x1'],
    ),
    'boxes as corners at the top left, told by their areas': (
        lambda content: [a.update(bbox=[8, 8, 56, 40], area=1536) for a in content['annotations']],
        ['all 3 boxes look like corners', '0 of them extend'],
    ),
    'boxes as fractions': (
        lambda content: [
            a.update(bbox=[0.1, 0.1, 0.5, 0.5], area=0.25) for a in content['annotations']
        ],
        ['all 3 boxes lie between 0 and 1', 'Multiply'],
    ),
    'nothing but crowds': (
        lambda content: [a.update(iscrowd=1) for a in content['annotations']],
        ['no annotations to train on', 'neither a crowd'],
    ),
    'nothing but empty boxes': (
        lambda content: [a.update(bbox=[0, 0, 0, 0]) for a in content['annotations']],
        ['no annotations to train on'],
    ),
}


@pytest.mark.filterwarnings('ignore:.*training leaves out')
@pytest.mark.parametrize('case', ANNOTATIONS)
def test_annotation_file(case: str, cfg: Config, root: Path, tmp_path: Path):
    change, words = ANNOTATIONS[case]
    path = root / 'annotations/instances_train.json'
    content = coco()
    change(content)
    write_json(path, content)
    message = refusal(DataError, cfg, ('train',), tmp_path)
    assert_names(message, 'train_dataloader.dataset.ann_file', path, *words)


# Images ------------------------------------------------------------------------------------------


def picture(height: int, width: int) -> np.ndarray:
    """A dark and a bright half, left and right; 8 bits."""
    pixels = np.full((height, width, 3), 40, np.uint8)
    pixels[:, width // 2 :] = 200
    return pixels


def write_turned(path: Path) -> None:
    """Write a JPEG of 96 x 128 pixels whose EXIF orientation makes it 128 x 96."""
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    Image.fromarray(picture(96, 128)).save(path, exif=exif)


def load(path: Path, height: int, width: int, **options: object) -> np.ndarray:
    return LoadImage(**options)(dict(img_path=str(path), height=height, width=width))['img']


def test_exif_orientation_is_applied_and_told_from_the_annotations(tmp_path: Path, recwarn):
    path = tmp_path / 'turned.jpg'
    write_turned(path)
    turned = load(path, 128, 96)
    assert turned.shape == (128, 96, 3)
    assert turned[:50].mean() < 60 and turned[-50:].mean() > 180
    assert not recwarn.list
    with pytest.warns(UserWarning, match='128 pixels high and 96 wide') as caught:
        assert load(path, 96, 128).shape == (128, 96, 3)
    assert_names(str(caught[0].message), path, 'for 96 and 128', 'color_ignore_orientation')
    # The remedy works.
    recwarn.clear()
    assert load(path, 96, 128, color_type='color_ignore_orientation').shape == (96, 128, 3)
    assert not recwarn.list


@pytest.mark.parametrize(
    'pixels',
    [
        picture(96, 128)[..., 0],
        picture(96, 128).astype(np.uint16) * 257,
        picture(96, 128)[..., 0].astype(np.uint16) * 257,
        np.dstack((picture(96, 128), np.zeros((96, 128), np.uint8))),
    ],
    ids=['greyscale', '16 bits', '16 bits greyscale', 'transparent'],
)
def test_image_of_another_format_is_the_same(pixels: np.ndarray, tmp_path: Path):
    cv2.imwrite(str(tmp_path / 'image.png'), pixels)
    np.testing.assert_array_equal(load(tmp_path / 'image.png', 96, 128), picture(96, 128))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch) -> Path:
    """A working directory with ``config.py`` and its data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    Path('config.py').write_text(CONFIG)
    write_data(tmp_path / 'data/shapes128')
    return tmp_path


@pytest.mark.filterwarnings('ignore')
def test_unusual_images_train_and_are_evaluated(folder: Path, monkeypatch, capfd):
    """Grey, of 16 bits, turned, of one pixel, and with boxes that are passed over."""
    sizes = {'grey.png': (96, 128), 'deep.png': (96, 128), 'turned.jpg': (96, 128)}
    sizes |= {'dot.png': (1, 1), 'line.png': (1, 100)}
    for split in ('train', 'val'):
        images = folder / 'data/shapes128' / split
        cv2.imwrite(str(images / 'grey.png'), picture(96, 128)[..., 0])
        cv2.imwrite(str(images / 'deep.png'), picture(96, 128).astype(np.uint16) * 257)
        write_turned(images / 'turned.jpg')
        cv2.imwrite(str(images / 'dot.png'), picture(1, 1))
        cv2.imwrite(str(images / 'line.png'), picture(1, 100))
        content = coco(num_images=len(sizes))
        for entry, box, (name, (height, width)) in zip(
            content['images'], content['annotations'], sizes.items(), strict=True
        ):
            entry.update(file_name=name, height=height, width=width)
            box.update(bbox=[0, 0, width, height], area=height * width)
        content['annotations'][1]['bbox'] = [-20, 40, 500, 500]
        content['annotations'] += [
            dict(content['annotations'][0], id=10 + i, bbox=box)
            for i, box in enumerate([[8, 8, 0, 4], [72, 8, -64, 48], [500, 500, 9, 9]])
        ]
        write_json(folder / f'data/shapes128/annotations/instances_{split}.json', content)
    # A visualizer of its own: another test's of the same name would write elsewhere.
    assert run(monkeypatch, 'train', 'config.py', '--cfg-options', 'visualizer.name=own') == 0
    log = json.loads(next(folder.glob('work/*/vis_data/scalars.json')).read_text().splitlines()[-1])
    assert 0 <= log['coco/bbox_mAP'] <= 1
    state = torch.load(folder / 'work/epoch_1.pth', weights_only=False)['state_dict']
    assert all(weight.isfinite().all() for weight in state.values())


# Checkpoints -------------------------------------------------------------------------------------


def test_checkpoint_that_is_a_folder(cfg: Config, tmp_path: Path):
    cfg.load_from = str(tmp_path)
    message = refusal(ConfigError, cfg, ('test',), tmp_path)
    assert_names(message, f'checkpoint {tmp_path} is a folder', 'Give the path')


def without(name: str):
    return lambda state: state.pop(name)


def replaced(name: str, *shape: int, value: float = 0.0):
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
        False,
        ['query_embedding.weight', '(300, 128)', '(25, 128)', 'work directory'],
    ),
    'other channels to resume from': (
        replaced('neck.convs.0.conv.weight', 256, 128, 1, 1),
        True,
        ['neck.convs.0.conv.weight', '(256, 128, 1, 1)', 'Use the config'],
    ),
}


@pytest.mark.parametrize('case', WEIGHTS)
def test_weights_of_a_checkpoint(case: str, cfg: Config, tmp_path: Path):
    change, resume, words = WEIGHTS[case]
    state = dict(shapes_state())
    change(state)
    cfg.load_from = save_checkpoint(tmp_path / 'some.pth', state_dict=state)
    cfg.resume = resume
    message = refusal(ConfigError, cfg, ('train',) if resume else ('test',), tmp_path)
    assert_names(message, cfg.load_from, *words)


def test_another_model_may_be_fine_tuned_from(cfg: Config, tmp_path: Path):
    state = dict(shapes_state())
    state['query_embedding.weight'] = torch.zeros(300, 128)
    del state['decoder.center_head.layers.0.bias']
    cfg.load_from = save_checkpoint(tmp_path / 'some.pth', state_dict=state)
    check_config(cfg, ('train', 'val'))


@pytest.mark.parametrize(
    'content', [dict(state_dict=[torch.zeros(2)]), dict(state_dict=None), dict(meta=None)]
)
def test_checkpoint_without_weights(content: dict, cfg: Config, tmp_path: Path):
    cfg.load_from = str(tmp_path / 'some.pth')
    torch.save(content, cfg.load_from)
    message = refusal(ConfigError, cfg, ('test',), tmp_path)
    assert_names(message, cfg.load_from, 'weights of', 'Specify a checkpoint')


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (None, ['does not exist', 'Give the path']),
        (b'junk', ['cannot be read', 'Copy it again']),
        (dict(payload=Payload()), ['Path', 'Save its weights alone']),
    ],
    ids=['missing', 'junk', 'code'],
)
def test_weights_of_a_backbone(content: object, words: list[str], cfg: Config, tmp_path: Path):
    path = tmp_path / 'backbone.pth'
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(path))
    message = refusal(ConfigError, cfg, ('train',), tmp_path)
    assert_names(message, f'model.backbone.init_cfg: checkpoint {path}', *words)
    check_config(cfg, ('test',))  # which starts from the weights of the whole model
    torch.save(dict(state_dict={}), path)
    check_config(cfg, ('train',))


# Command lines -----------------------------------------------------------------------------------

# name: (tool, arguments, words of the message); every one ends with exit code 2.
COMMANDS = {
    'train nothing': ('train', [], ['required: config']),
    'train into a file': (
        'train',
        ['config.py', '--work-dir', 'config.py'],
        ['--work-dir config.py is a file', 'Specify a folder'],
    ),
    'train a folder': ('train', ['data'], ['config data does not exist', 'path of a config']),
    'train what is no config': (
        'train',
        ['data/shapes128/annotations/instances_train.json'],
        ["no key 'model'", 'complete config'],
    ),
    'train with an unknown runner': (
        'train',
        ['config.py', '--cfg-options', 'runner_type=Runer'],
        ['runner_type: nothing is called Runer', 'Leave it out'],
    ),
    'train with a misspelt option': (
        'train',
        ['config.py', '--cfg-options', 'optim_wraper.optimizer.lr=1'],
        ['optim_wraper', 'did you mean optim_wrapper?'],
    ),
    'train a model with a wrong value': (
        'train',
        ['config.py', '--cfg-options', f'{PRIOR}.beta=0'],
        ['model', 'spatial_prior_cfg.beta=0', 'positive', 'runner_type=Runner starts without'],
    ),
    'train on a file with NaN': (
        'train',
        ['config.py', '--cfg-options', 'train_dataloader.dataset.ann_file=../../nan.json'],
        ['nan.json', 'annotations[1].bbox', 'finite'],
    ),
    'test what does not fit': (
        'test',
        ['config.py', 'wide.pth'],
        ['wide.pth is from another model', 'Use the config'],
    ),
    'test into a file of another kind': (
        'test',
        ['config.py', 'wide.pth', '--out', 'found.json'],
        ['--out found.json', '.pkl'],
    ),
    'too small shapes': ('make_shapes', ['set', '--size', '31'], ['size is 31', 'at least 32']),
    'no shapes': ('make_shapes', ['set', '--train', '0'], ['num_train is 0', 'at least 1']),
    'negative seed': ('make_shapes', ['set', '--seed', '-1'], ['seed is -1', '0 to']),
    'shapes over other data': ('make_shapes', ['data'], ['data exists', 'choose another folder']),
    'shapes below a file': ('make_shapes', ['config.py/set'], ['config.py/set', 'Not a directory']),
    'convert what is not there': (
        'convert_checkpoint',
        ['gone.pth', 'out.pth'],
        ['gone.pth', 'does not exist'],
    ),
    'benchmark what is not there': (
        'analysis_tools/benchmark_model',
        ['gone.py'],
        ['config gone.py does'],
    ),
    'benchmark a grid of one side': (
        'analysis_tools/benchmark_attention',
        ['--grids', '25', '--json', 'rows.json'],
        ['--grids', "'25'"],
    ),
}


@pytest.mark.parametrize('case', COMMANDS)
def test_command_line(case: str, folder: Path, monkeypatch, capfd):
    tool, arguments, words = COMMANDS[case]
    content = coco()
    content['annotations'][1]['bbox'] = [math.nan] * 4
    write_json(folder / 'nan.json', content)
    state = model_state(Config.fromfile('config.py').model)
    state['query_embedding.weight'] = torch.zeros(300, 128)
    save_checkpoint(folder / 'wide.pth', state_dict=state)
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *arguments])
    with untouched(folder), pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(ROOT / f'tools/{tool}.py'), run_name='__main__')
    assert exit_info.value.code == 2
    error = capfd.readouterr().err
    assert 'Traceback' not in error
    assert_names(error.strip().splitlines()[-1], *words)
