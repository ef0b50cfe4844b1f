"""A short run before a run finds what checks of a config cannot, and leaves no trace."""

import copy
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.models.detectors import DetectionTransformer
from mmdet.registry import HOOKS, TRANSFORMS
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.visualization import Visualizer
from runs import CONFIG, TINY_MODEL, coco, on_data, run, trial, write_data, write_json

from mmsmca import launch
from mmsmca.checks.preflight import check_run
from mmsmca.errors import ConfigError, DataError


@pytest.fixture(scope='module')
def root(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp('data') / 'shapes')


@pytest.fixture
def cfg(shapes_config: Config, root: Path) -> Config:
    cfg = on_data(shapes_config, root)
    cfg.merge_from_dict(dict(model=TINY_MODEL))
    return cfg


def traces(folder: Path) -> list:
    managers = (MessageHub, MMLogger, DefaultScope, Visualizer, *Visualizer.__subclasses__())
    return [
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),
        *(list(manager._instance_dict.items()) for manager in managers),
        dict(TRANSFORMS.module_dict),
        {path: path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()},
        sorted(folder.rglob('*')),
    ]


def failure(cfg: Config, phase: str = 'train') -> str:
    with pytest.raises(ConfigError) as caught:
        trial(cfg, phase)
    assert '\n' not in str(caught.value)
    return str(caught.value)


def change(**options: object) -> Callable[[Config], None]:
    return lambda cfg: cfg.merge_from_dict({k.replace('__', '.'): v for k, v in options.items()})


def hook(kind: str | type, **options: object) -> Callable[[Config], None]:
    return change(custom_hooks=[dict(type=kind, **options)])


def evaluator(**options: object) -> Callable[[Config], None]:
    return lambda cfg: cfg.update(val_evaluator=[cfg.val_evaluator, options])


class Writer(Hook):
    """Writes, moves and removes files of the user in all ways."""

    def before_run(self, runner) -> None:
        with open('mine.txt', 'a') as file:
            file.write(' and the trial')
        assert Path('mine.txt').read_text() == 'mine and the trial'
        Path('new').mkdir()
        Path('new/file').touch()
        cv2.imwrite('new/image.png', np.zeros((4, 4, 3), np.uint8))
        assert cv2.imread('mine.png') is not None and Path('new/image.png').stat().st_size
        torch.save({}, 'mine.txt')
        np.save('mine.npy', np.zeros(2))
        shutil.copy('mine.png', 'mine.json')
        os.replace('mine.png', 'moved.png')
        os.remove('mine.pkl')
        shutil.rmtree('folder')


# Hooks, metrics and backends that write where they are told, and a service that is not contacted.
WRITERS = {
    'DumpResults': evaluator(type='DumpResults', out_file_path='mine.pkl'),
    'DumpDetResults': evaluator(type='DumpDetResults', out_file_path='mine.pkl'),
    'CocoMetric': change(val_evaluator__outfile_prefix='mine'),
    'format_only': change(val_evaluator=dict(format_only=True, outfile_prefix='mine')),
    'LoggerHook': change(default_hooks__logger__out_dir='folder'),
    'CheckpointHook': change(default_hooks__checkpoint__out_dir='folder'),
    'DetVisualizationHook': change(
        default_hooks__visualization=dict(draw=True, show=True, interval=1, test_out_dir='folder')
    ),
    'LocalVisBackend': change(visualizer__save_dir='folder'),
    'WandbVisBackend': change(
        visualizer__vis_backends=[dict(type='WandbVisBackend', init_kwargs=dict(job_type='a'))]
    ),
    'a hook': hook(Writer),
}


@pytest.mark.parametrize('writer', [None, *WRITERS])
def test_good_config_passes_without_a_trace(
    cfg: Config, writer: str | None, tmp_path: Path, monkeypatch, capfd
):
    monkeypatch.chdir(tmp_path)
    for name in ('mine.txt', 'mine.pkl', 'mine.bbox.json', 'mine.json', 'folder/mine'):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text('mine')
    cv2.imwrite('mine.png', np.zeros((4, 4, 3), np.uint8))
    if writer:
        WRITERS[writer](cfg)
    config = copy.deepcopy(cfg.to_dict())
    before = traces(tmp_path)
    trial(cfg, 'train')
    assert traces(tmp_path) == before
    assert cfg.to_dict() == config
    assert capfd.readouterr().out == ''


def test_model_is_built_once(cfg: Config, monkeypatch):
    built = []
    init = DetectionTransformer.__init__

    def counted(*args, **kwargs) -> None:
        built.append(1)
        init(*args, **kwargs)

    monkeypatch.setattr(DetectionTransformer, '__init__', counted)
    check_run(cfg, 'train')
    assert len(built) == 1  # The run builds its own.


class Seen(Hook):
    """What the user's parts of a run see of it."""

    def before_train(self, runner) -> None:
        info = MessageHub.get_current_instance().get_info
        seen.append((runner.max_epochs, runner.max_iters, info('max_epochs'), info('max_iters')))

    def after_train_iter(self, runner, batch_idx, data_batch, outputs) -> None:
        seen.append((runner.iter, len(data_batch['inputs'])))

    def after_val_epoch(self, runner, metrics) -> None:
        seen.append(len(runner.val_dataloader.dataset))


seen: list = []


def test_only_length_data_and_folder_are_reduced(cfg: Config):
    seen.clear()
    hook(Seen)(cfg)
    cfg.train_cfg.update(max_epochs=30, val_interval=10)
    cfg.train_dataloader.batch_size = 3
    trial(cfg, 'train')
    assert seen == [(30, 30, 30, 30), (0, 2), 2]


RESIZE = dict(type='BatchSyncRandomResize', random_size_range=(64, 96), size_divisor=32, interval=1)
# What a run accepts
GOOD = {
    'few queries': change(model__test_cfg__max_per_img=1000),
    'a pretrained backbone': lambda cfg: cfg.model.backbone.update(
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')
    ),
    'batches that are resized': change(
        model__data_preprocessor=dict(pad_size_divisor=32, batch_augments=[RESIZE])
    ),
    'types that are no classes': hook(
        'ProfilerHook', on_trace_ready=dict(type='log_trace', sort_by='self_cpu_time_total')
    ),
    'tags': change(
        visualizer__vis_backends=[dict(type='MLflowVisBackend', tags=dict(type='baseline'))]
    ),
    'an average of weights': hook('EMAHook', ema_type='ExpMomentumEMA', gamma=100, begin_epoch=9),
    'groups of images': change(
        train_dataloader__batch_sampler=dict(type='AspectRatioBatchSampler', drop_last=True)
    ),
    'iterations': change(
        train_cfg=dict(_delete_=True, type='IterBasedTrainLoop', max_iters=100, val_interval=50),
        train_dataloader__sampler__type='InfiniteSampler',
    ),
    'a late schedule': change(
        param_scheduler=[
            dict(type='CosineAnnealingLR', begin=5, T_max=5, convert_to_iter_based=True)
        ]
    ),
}


@pytest.mark.parametrize('case', GOOD)
def test_right_input_passes(cfg: Config, case: str, monkeypatch):
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', None)
    cfg.train_cfg.max_epochs = 11
    GOOD[case](cfg)
    check_run(cfg, 'train')


def no_annotations(cfg: Config) -> None:
    pipeline = cfg.train_dataloader.dataset.pipeline
    pipeline[:] = [t for t in pipeline if t.type != 'LoadAnnotations']


# What a run would refuse, some of it after an epoch: (change, words of the message)
BAD = {
    'no annotations': (no_annotations, 'the first training step fails in model.bbox_head'),
    'scheduler': (
        lambda cfg: cfg.param_scheduler[1].update(end=-1),
        'param_scheduler fails: ValueError: end',
    ),
    'best metric': (
        change(default_hooks__checkpoint__save_best='coco/bbox_map'),
        'mean coco/bbox_mAP?',
    ),
    'metric to stop': (
        hook('EarlyStoppingHook', monitor='mAP'),
        "EarlyStoppingHook.monitor is 'mAP'",
    ),
    'validation': (
        change(val_dataloader__dataset__pipeline__1__scale=0),
        'the first validation fails',
    ),
    'average: momentum': (
        hook('EMAHook', momentun=0.1),
        'custom_hooks.0.momentun: TypeError: ExponentialMovingAverage.__init__() got an unexpected '
        "keyword argument 'momentun'; did you mean momentum?",
    ),
    'average: type': (
        hook('EMAHook', ema_type='ExpMomentumEMAA'),
        'custom_hooks.0.ema_type: nothing is called ExpMomentumEMAA; did you mean ExpMomentumEMA?',
    ),
    'batch sampler': (
        change(train_dataloader__batch_sampler=dict(type='MultiDataSampler', dataset_ratio=[1])),
        "MultiDataSampler.__init__() got an unexpected keyword argument 'sampler'",
    ),
    'drop_last': (
        change(
            train_dataloader__drop_last=True,
            train_dataloader__batch_sampler=dict(type='AspectRatioBatchSampler'),
        ),
        'batch_sampler option is mutually exclusive with batch_size, shuffle, sampler, and drop_l',
    ),
    'quotes': (
        change(train_dataloader__num_workers='2'),
        'train_dataloader.num_workers: TypeError:',
    ),
    'pipeline to come': (
        hook('PipelineSwitchHook', switch_epoch=0, switch_pipeline=[dict(type='Resise')]),
        'custom_hooks.0.switch_pipeline.0.type: nothing is called Resise; did you mean Resize?',
    ),
}


@pytest.mark.parametrize('case', BAD)
def test_what_a_run_would_refuse(cfg: Config, case: str):
    make, words = BAD[case]
    make(cfg)
    assert words in failure(cfg)


@HOOKS.register_module()
class RemembersPath(Hook):
    def before_train(self, runner) -> None:
        runner.message_hub.update_info('folder', Path('data'))


def test_checkpoint_that_could_not_be_read_back(cfg: Config):
    """Its message would come when the trained model is to be tested."""
    cfg.custom_hooks = [dict(type='RemembersPath')]
    assert 'message_hub.runtime_info.folder: the run would save a PosixPath' in failure(cfg)


def test_test_is_tried_too(cfg: Config):
    cfg.merge_from_dict({'model.test_cfg.max_per_image': 5})
    assert 'model.test_cfg.max_per_image: nothing reads it; did you mean' in failure(cfg, 'test')


def test_image_is_named(cfg: Config, tmp_path: Path):
    root = write_data(tmp_path / 'other')
    for i in range(3):
        (root / f'train/{i}.jpg').write_bytes(b'junk')
    with launch.naming_images(), pytest.raises(DataError, match='train/.*cannot be loaded'):
        trial(on_data(cfg, root), 'train')
    assert 'LoadImageFromFile' not in TRANSFORMS.module_dict


def test_sampler_that_composes_batches_is_kept(cfg: Config):
    """Not the first images: a batch of each source, as semi-supervised models need it."""
    one = cfg.train_dataloader.dataset
    sampler = dict(type='MultiSourceSampler', batch_size=3, source_ratio=[2, 1])
    cfg.train_dataloader.batch_size = 3
    cfg.train_dataloader.sampler = ConfigDict(sampler)
    cfg.train_dataloader.dataset = ConfigDict(type='ConcatDataset', datasets=[one, one])
    seen.clear()
    hook(Seen)(cfg)
    trial(cfg, 'train')
    assert (0, 3) in seen
    cfg.train_dataloader.sampler.source_ratio = [3]
    assert 'source_ratio' in failure(cfg)


def semi_supervised(cfg: Config, root: Path) -> None:
    """Make a semi-supervised detector of a config, whose second data set has no objects."""
    meta = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'homography_matrix')
    pack = dict(type='PackDetInputs', meta_keys=meta)
    load = dict(type='LoadImageFromFile')
    resize = dict(type='Resize', scale=(64, 64), keep_ratio=True)
    labels = [dict(type='LoadAnnotations', with_bbox=True), resize]
    views = dict(unsup_teacher=[resize, pack], unsup_student=[resize, pack])
    branches = dict(type='MultiBranch', branch_field=['sup', *views])
    first = cfg.train_dataloader.dataset
    second = dict(first, filter_cfg=dict(filter_empty_gt=False), ann_file='unlabelled.json')
    first.pipeline = [load, *labels, dict(branches, sup=pack)]
    second['pipeline'] = [load, dict(type='LoadEmptyAnnotations'), dict(branches, **views)]
    write_json(root / 'unlabelled.json', coco() | dict(annotations=[]))
    cfg.train_dataloader.batch_size = 2
    cfg.train_dataloader.sampler = ConfigDict(
        type='MultiSourceSampler', batch_size=2, source_ratio=[1, 1]
    )
    cfg.train_dataloader.dataset = ConfigDict(type='ConcatDataset', datasets=[first, second])
    train = dict(freeze_teacher=True, sup_weight=1.0, unsup_weight=4.0, cls_pseudo_thr=0.0)
    cfg.model = ConfigDict(
        type='SemiBaseDetector',
        detector=cfg.model,
        data_preprocessor=dict(
            type='MultiBranchDataPreprocessor', data_preprocessor=cfg.model.data_preprocessor
        ),
        semi_train_cfg=dict(train, min_pseudo_bbox_wh=(1e-2, 1e-2)),
        semi_test_cfg=dict(predict_on='teacher'),
    )
    cfg.val_cfg = ConfigDict(type='TeacherStudentValLoop')
    cfg.default_hooks.checkpoint.pop('save_best', None)
    hook('MeanTeacherHook')(cfg)


def test_semi_supervised_detector(cfg: Config, root: Path):
    semi_supervised(cfg, root)
    check_run(cfg, 'train')
    cfg.train_dataloader.dataset.datasets.pop(0)
    with pytest.raises(DataError, match='no annotations to train on'):
        check_run(cfg, 'train')


def test_every_metric_has_its_own_data_set(cfg: Config, root: Path):
    content = coco()
    for entry in content['images']:
        entry['id'] += 100
    for entry in content['annotations']:
        entry['image_id'] += 100
    write_json(root / 'annotations/others.json', content)
    first = cfg.val_dataloader.dataset
    datasets = [first, dict(first, ann_file='annotations/others.json')]
    cfg.val_dataloader.dataset = ConfigDict(type='ConcatDataset', datasets=datasets)
    metrics = [
        cfg.val_evaluator,
        dict(cfg.val_evaluator, ann_file=f'{root}/annotations/others.json'),
    ]
    cfg.val_evaluator = ConfigDict(
        type='MultiDatasetsEvaluator', dataset_prefixes=['a', 'b'], metrics=metrics
    )
    cfg.default_hooks.checkpoint.save_best = 'b/coco/bbox_mAP'
    check_run(cfg, 'train')
    cfg.val_evaluator.metrics.reverse()
    with pytest.raises(DataError, match='val_evaluator.metrics.0.ann_file.*does not have'):
        check_run(cfg, 'train')


def test_resumed_run_is_not_tried(cfg: Config, monkeypatch):
    monkeypatch.setattr('mmsmca.checks.preflight.trial_faults', None)
    cfg.resume = True
    check_run(cfg, 'train')


@pytest.mark.parametrize('script', ['tools/train.py', 'MMDetection'])
def test_both_scripts_check(script: str, tmp_path: Path, root: Path, monkeypatch, capfd):
    """Refused before anything is written, unless the checks are turned off."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv('LOCAL_RANK', '0')
    Path('data').mkdir()
    Path('data/shapes128').symlink_to(root)
    Path('config.py').write_text(
        CONFIG + "custom_hooks = [dict(type='EarlyStoppingHook', monitor='mAP')]"
    )
    if script == 'MMDetection':
        monkeypatch.setattr('sys.argv', ['train.py', 'config.py'])
        with pytest.raises(
            ConfigError, match="monitor is 'mAP'.*runner_type=Runner starts without any"
        ):
            launch._script('train').main()
    else:
        assert run(monkeypatch, 'train', 'config.py') == 2
        assert "EarlyStoppingHook.monitor is 'mAP'" in capfd.readouterr().err.splitlines()[-1]
    assert not Path('work').exists()
    if script != 'MMDetection':
        assert run(monkeypatch, 'train', 'config.py', '--cfg-options', 'runner_type=Runner') == 0
        assert Path('work/epoch_1.pth').is_file()
