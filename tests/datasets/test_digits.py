"""The second generated set: handwritten digits, none of which two splits share."""

import json
import runpy
import sys

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from utils import ROOT, load_config

from mmsmca.datasets import digits
from mmsmca.datasets.digits import DIGITS_OF_SPLIT, Digits
from mmsmca.studies.study import study_configs

SMALL = {'num_train': 12, 'num_val': 6, 'size': 64, 'seed': 3}


@pytest.fixture(scope='module')
def small_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sets') / 'digits'
    assert Digits(**SMALL).write(folder)
    return folder


def test_splits_share_no_digit():
    numbers = {split: set(range(*ends)) for split, ends in DIGITS_OF_SPLIT.items()}
    strokes, labels, _ = digits._sources()
    assert sum(map(len, numbers.values())) == len(set.union(*numbers.values())) == len(strokes)
    for split in numbers.values():
        assert set(labels[list(split)]) == set(range(10))
    pictures = {split: {strokes[i].tobytes() for i in few} for split, few in numbers.items()}
    assert not pictures['train'] & (pictures['val'] | pictures['tune'])
    assert not pictures['val'] & pictures['tune']


@pytest.mark.parametrize('split', DIGITS_OF_SPLIT)
def test_images_take_only_what_is_of_their_split(monkeypatch, split):
    """Digits of other splits, and the photographs' other halves, are marked: none is seen."""
    strokes, labels, photographs = digits._sources()
    first, last = DIGITS_OF_SPLIT[split]
    marked = np.full_like(labels, -1)
    marked[first:last] = labels[first:last]
    halves = [np.zeros_like(photograph) for photograph in photographs]
    for half in halves:
        middle = half.shape[1] // 2
        half[:, slice(middle, None) if split == 'train' else slice(middle)] = 255
    monkeypatch.setattr(digits, '_sources', lambda: (strokes, marked, halves))
    digits_seen = 0
    for index in range(60):
        image, objects = Digits(size=64).draw(split, index)
        assert all(shape.label >= 0 for shape in objects)
        hidden = np.zeros((64, 64), np.uint8)
        for shape in objects:
            hidden |= shape.mask.astype(np.uint8)
        # Beyond the strokes' soft edges there is the photograph, here black.
        assert image[cv2.dilate(hidden, np.ones((25, 25))) == 0].max(initial=0) == 0
        digits_seen += len(objects)
    assert digits_seen > 60


def test_boxes_are_tight_apart_and_inside_the_image():
    counts, extents = set(), []
    for index in range(200):
        image, objects = Digits(size=96).draw('train', index)
        counts.add(len(objects))
        for shape in objects:
            x, y, width, height = shape.bbox
            extents.append(max(width, height))
            inside = shape.mask[y : y + height, x : x + width]
            assert inside.sum() == shape.mask.sum() == shape.full_area > 0
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))
        assert np.sum([shape.mask for shape in objects], axis=0).max(initial=0) <= 1
    assert counts == {0, 1, 2, 3}
    assert min(extents) < 14 and max(extents) > 48


def test_config_reads_the_set(small_set):
    cfg = load_config('small/detr_r18w16_1xb4-3ki_shapes192.py')
    cfg.merge_from_dict(Config.fromfile(ROOT / 'configs/small/_base_/digits.py').to_dict())
    cfg.train_dataloader.dataset.data_root = str(small_set)
    init_default_scope('mmdet')
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert dataset.metainfo['classes'] == digits.DIGITS_CLASSES
    content = json.loads((small_set / 'annotations/instances_train.json').read_text())
    truths = [dataset[i]['data_samples'].gt_instances for i in range(len(dataset))]
    assert len(truths) == len(content['images']) == 12
    assert [int(label) + 1 for truth in truths for label in truth.labels] == [
        annotation['category_id'] for annotation in content['annotations']
    ]


@pytest.fixture(scope='module')
def studies():
    return {
        data: study_configs(ROOT / f'configs/studies/smca_dino_{data}.py')
        for data in ('digits', 'shapes')
    }


@pytest.mark.parametrize('detector', ['smca', 'dino-qfl', 'smca-multi-scale'])
def test_recipe_is_that_of_shapes(studies, detector):
    cfg, shapes = (studies[data][detector] for data in ('digits', 'shapes'))
    for key in ('optim_wrapper', 'param_scheduler', 'train_cfg', 'test_pipeline'):
        assert cfg[key] == shapes[key]
    flip = dict(type='RandomFlip', prob=0.5)
    assert cfg.train_pipeline == [step for step in shapes.train_pipeline if step != flip]
    assert cfg.train_dataloader.dataset.pipeline == cfg.train_pipeline != shapes.train_pipeline
    assert cfg.model.bbox_head.pop('num_classes') == 10
    assert shapes.model.bbox_head.pop('num_classes') == 6
    assert cfg.model == shapes.model
    for name in ('val', 'test'):
        dataset = cfg[f'{name}_dataloader'].dataset
        assert cfg[f'{name}_evaluator'].ann_file == dataset.data_root + dataset.ann_file


def test_command_names_the_extra_that_it_needs(tmp_path, monkeypatch, capsys):
    def run():
        words = ['make_digits.py', str(tmp_path / 'set'), *'--train 1 --val 1 --size 64'.split()]
        monkeypatch.setattr(sys, 'argv', words)
        return runpy.run_path(str(ROOT / 'tools/make_digits.py'))['main']()

    digits._sources.cache_clear()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, 'sklearn.datasets', None)
        assert run() == 2
    assert "pip install 'mmsmca[digits]'" in capsys.readouterr().err
    assert run() == 0
    assert capsys.readouterr().out.endswith('set: written\n')
    assert run() == 0
    assert 'already there' in capsys.readouterr().out
