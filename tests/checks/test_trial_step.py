"""One training step before a run finds what checks of a config cannot, and leaves no trace."""

import copy
import random
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmdet.registry import TRANSFORMS
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from runs import real_study, write_data
from utils import load_config

from mmsmca.checks.load_image import naming_images
from mmsmca.checks.trial_step import trial_step
from mmsmca.errors import ConfigError, DataError
from mmsmca.launch import run_tool
from mmsmca.studies.record import StudyError
from mmsmca.studies.study import load_study
from mmsmca.studies.sweep import Resources, Sweep

# A small SMCA, and a Deformable DETR as small.
SMALL = dict(num_queries=4, encoder=dict(num_layers=1), decoder=dict(num_layers=1))


def on_data(cfg: Config, root: Path) -> Config:
    for split in ('train', 'val'):
        cfg[f'{split}_dataloader'].dataset.update(
            data_root=str(root),
            metainfo=dict(classes=('disc', 'square', 'triangle', 'star', 'cross', 'ring')),
            ann_file=f'annotations/instances_{split}.json',
            data_prefix=dict(img=f'{split}/'),
        )
    cfg.val_evaluator.ann_file = str(root / 'annotations/instances_val.json')
    return cfg


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp('data') / 'shapes')


@pytest.fixture
def cfg(root: Path) -> Config:
    cfg = load_config('small/smca_r18w16_1xb8-11e_shapes128.py')
    cfg.merge_from_dict(dict(model=SMALL))
    return on_data(cfg, root)


def traces(folder: Path) -> list:
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        list(MessageHub._instance_dict),
        list(MMLogger._instance_dict),
        list(DefaultScope._instance_dict),
        dict(TRANSFORMS.module_dict),
        sorted(folder.rglob('*')),
    ]


def failure(cfg: Config) -> str:
    with pytest.raises(ConfigError) as caught:
        trial_step(cfg)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def test_good_config_passes_without_a_trace(cfg: Config, root: Path, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    config = copy.deepcopy(cfg.to_dict())
    before = traces(tmp_path) + traces(root)
    trial_step(cfg)
    assert traces(tmp_path) + traces(root) == before
    assert cfg.to_dict() == config
    assert capfd.readouterr() == ('', '')


def test_few_queries_are_validated(cfg: Config):
    cfg.model.update(num_queries=4, test_cfg=dict(max_per_img=1000))
    trial_step(cfg)


def test_nothing_is_downloaded(cfg: Config, monkeypatch):
    cfg.model.backbone.init_cfg = dict(type='Pretrained', checkpoint='torchvision://resnet18')
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', None)
    trial_step(cfg)


def test_mixed_precision_is_left_to_the_run(cfg: Config):
    cfg.optim_wrapper.type = 'AmpOptimWrapper'
    cfg.optim_wrapper.loss_scale = 'dynamic'
    trial_step(cfg)


def test_two_stages_of_other_than_256_channels(root: Path):
    """MMDetection's position embedding of two stages is made for 256 channels."""
    cfg = load_config('small/deformable-detr_r18w16_1xb4-3ki_shapes192.py')
    cfg.merge_from_dict({'model.as_two_stage': True, 'model.encoder.num_layers': 1})
    before = traces(root)
    message = failure(on_data(cfg, root))
    assert 'the first training step fails in model.pos_trans_fc: RuntimeError: mat1 and' in message
    assert 'Correct the config; --no-trial-step' in message
    assert traces(root) == before


def wrong(option: str, value: object) -> Callable[[Config], None]:
    return lambda cfg: cfg.merge_from_dict({option: value})


def no_annotations(cfg: Config) -> None:
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[:] = [t for t in pipeline if t.type != 'LoadAnnotations']


@pytest.mark.parametrize(
    ('change', 'place'),
    [
        (wrong('model.bbox_head.num_classes', 0), 'in model.bbox_head'),
        (wrong('train_dataloader.dataset.pipeline.2', dict(type='CutOut', n_holes=1)), ''),
        (no_annotations, ''),
        (wrong('optim_wrapper.optimizer.momentum', 1), "argument 'momentum'"),
        (wrong('train_dataloader.dataset.filter_cfg', 1), ''),
        (wrong('param_scheduler.1.end', -1), 'building param_scheduler'),
        (wrong('default_hooks.checkpoint.backend_args', dict(backend='x')), 'writes to the local'),
        (wrong('default_hooks.checkpoint.rule', 'most'), 'building the hooks'),
        (wrong('default_hooks.checkpoint.save_best', 'coco/bbox_map'), 'mean coco/bbox_mAP?'),
        (
            wrong('custom_hooks', [dict(type='EarlyStoppingHook', monitor='mAP')]),
            "EarlyStoppingHook.monitor is 'mAP'",
        ),
        (wrong('val_dataloader.dataset.pipeline.1.scale', 0), 'the first validation fails'),
        (wrong('val_evaluator.metric', 'boxes'), 'the first validation fails'),
    ],
)
def test_other_failures(cfg: Config, change: Callable[[Config], None], place: str):
    change(cfg)
    assert place in failure(cfg)


def test_transform_is_named(cfg: Config):
    cfg.train_dataloader.dataset.pipeline.insert(0, ConfigDict(type='Resize', scale=(64, 64)))
    assert "fails in the transform Resize: KeyError: 'img'" not in ''
    assert 'in the transform' in failure(cfg)


def test_image_is_named(cfg: Config, tmp_path: Path):
    root = write_data(tmp_path / 'other')
    (root / 'train/0.jpg').write_bytes(b'junk')
    with naming_images(), pytest.raises(DataError, match='train/0.jpg cannot be loaded'):
        trial_step(on_data(cfg, root))
    assert 'LoadImageFromFile' not in TRANSFORMS.module_dict


def test_sampler_that_composes_batches_is_kept(cfg: Config):
    """Not the first images: a batch of each source, as semi-supervised models need it."""
    one = cfg.train_dataloader.dataset
    sampler = dict(type='MultiSourceSampler', batch_size=3, source_ratio=[2, 1])
    cfg.train_dataloader.batch_size = 3
    cfg.train_dataloader.sampler = ConfigDict(sampler)
    cfg.train_dataloader.dataset = ConfigDict(type='ConcatDataset', datasets=[one, one])
    trial_step(cfg)
    cfg.train_dataloader.sampler.source_ratio = [3]
    assert 'source_ratio' in failure(cfg)


@pytest.mark.parametrize('asked', [True, False])
def test_command(cfg: Config, tmp_path: Path, monkeypatch, capfd, asked: bool):
    """Refused before anything is written, unless the trial is turned off."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    cfg.param_scheduler[1].end = -1
    for phase in ('val', 'test'):
        cfg.pop(f'{phase}_dataloader'), cfg.pop(f'{phase}_evaluator'), cfg.pop(f'{phase}_cfg')
    cfg.dump('config.py')
    off = [] if asked else ['--no-trial-step']
    monkeypatch.setattr(sys, 'argv', ['train.py', 'config.py', '--work-dir', 'work', *off])
    if asked:
        assert run_tool('train') == 2
        line = capfd.readouterr().err.splitlines()[-1]
        assert line.startswith(
            'train.py: error: config.py: building param_scheduler fails: ValueErr'
        )
        assert not Path('work').exists()
    else:
        with pytest.raises(ValueError, match='end'):
            run_tool('train')


def test_sweep_tries_every_experiment_that_has_not_begun(tmp_path: Path, root: Path):
    options = {
        'train_dataloader.dataset.data_root': str(root),
        'optim_wrapper.optimizer.momentum': 1,
    }
    study = load_study(real_study(tmp_path, root, **options))
    sweep = Sweep(study, study.runs, tmp_path / 'work', Path('train.py'), Resources())
    with pytest.raises(StudyError, match='^small: the first training step fails: TypeError'):
        sweep.try_experiments()
    assert not sweep.work_dir.exists()
    run_dir = sweep.dir_of(study.runs[1])
    run_dir.mkdir(parents=True)
    (run_dir / 'run.json').write_text('{}')
    sweep.try_experiments()
    # Its runs do not try again.
    assert '--no-trial-step' in sweep._command(Path('config.py'), run_dir)
