"""The generated detection set: what is drawn, what is written, what reads it."""

import hashlib
import json
import runpy
import sys

import cv2
import numpy as np
import pytest
from mmdet.registry import DATASETS, METRICS
from mmengine.config import Config
from mmengine.registry import init_default_scope
from pycocotools import mask as coco_mask
from utils import ROOT

from mmsmca.datasets import generated_set, shapes
from mmsmca.datasets.shapes import SHAPES_CLASSES, Shapes
from mmsmca.errors import DataError, UserError

SMALL = {'num_train': 40, 'num_val': 12, 'size': 64, 'max_objects': 4, 'seed': 3}


def draw_many(count, max_objects=3):
    drawn = Shapes(size=128, max_objects=max_objects)
    return [drawn.draw('train', i) for i in range(count)]


def read_annotations(folder, split='train'):
    return json.loads((folder / 'annotations' / f'instances_{split}.json').read_text())


def contents(folder):
    files = (path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def load_config(folder):
    """The quick start's config, reading the set in ``folder``."""
    cfg = Config.fromfile(ROOT / 'configs/small/smca_r18w16_1xb8-11e_shapes128.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        loader.dataset.data_root = str(folder)
    cfg.val_evaluator.ann_file = str(folder / 'annotations/instances_val.json')
    init_default_scope('mmdet')
    return cfg


def test_pixels_are_those_of_this_format_version():
    """If this fails on purpose, raise format_version: sets on disk are no longer the same."""
    pixels = b''.join(image.tobytes() for image, _ in draw_many(8, max_objects=8))
    digest = hashlib.sha256(pixels).hexdigest()[:16]
    assert (Shapes.format_version, digest) == (1, 'd3b81c37540b1a88')


@pytest.mark.parametrize(
    'changed', [{'seed': 1}, {'split': 'val'}, {'split': 'tune'}, {'index': 1}]
)
def test_seed_split_and_index_change_the_picture(changed):
    def draw(split='train', index=0, **parameters):
        return Shapes(size=64, **parameters).draw(split, index)[0]

    assert not np.array_equal(draw(), draw(**changed))


@pytest.fixture(scope='module')
def drawn():
    return draw_many(1000)


@pytest.fixture(scope='module')
def small_set(tmp_path_factory):
    folder = tmp_path_factory.mktemp('sets') / 'small'
    assert Shapes(**SMALL).write(folder)
    return folder


def test_same_parameters_give_the_same_bytes(small_set, tmp_path):
    Shapes(**SMALL).write(tmp_path / 'again')
    assert contents(tmp_path / 'again') == contents(small_set)


def test_first_images_do_not_depend_on_the_number_of_images(small_set, tmp_path):
    Shapes(**{**SMALL, 'num_train': 9}).write(tmp_path / 'short')
    long, short = contents(small_set), contents(tmp_path / 'short')
    pictures = [f'train/{index:06d}.png' for index in range(9)]
    assert sorted(name for name in short if name.startswith('train/')) == pictures
    assert all(short[name] == long[name] for name in pictures)
    annotations = read_annotations(tmp_path / 'short')['annotations']
    assert annotations == read_annotations(small_set)['annotations'][: len(annotations)]


def test_boxes_are_tight_and_inside_the_image(drawn):
    for _, objects in drawn:
        for shape in objects:
            x, y, width, height = shape.bbox
            inside = shape.mask[y : y + height, x : x + width]
            assert min(x, y) >= 0 and inside.shape == (height, width)
            assert inside.sum() == shape.mask.sum() > 0
            assert all(edge.any() for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]))


def test_occlusion_leaves_at_least_half_of_every_object(drawn):
    hidden = []
    for _, objects in drawn:
        assert np.sum([shape.mask for shape in objects], axis=0).max(initial=0) <= 1
        hidden += [1 - shape.mask.sum() / shape.full_area for shape in objects]
    assert max(hidden) <= shapes.MIN_VISIBLE
    assert 0.1 < np.mean(np.array(hidden) > 0.02) < 0.5


def test_shares_are_as_documented(drawn):
    objects = [shape for _, image_objects in drawn for shape in image_objects]
    counts = [sum(not shape.is_crowd for shape in objects) for _, objects in drawn]
    singles = [shape for shape in objects if not shape.is_crowd]
    tiny = [shape for shape in singles if max(shape.bbox[2:]) <= 7]
    assert 0.015 < np.mean(np.array(counts) == 0) < 0.05
    assert 0.015 < sum(shape.is_crowd for shape in objects) / len(drawn) < 0.05
    assert 0.015 < len(tiny) / len(singles) < 0.05
    assert all(0.25 < np.mean(np.array(counts) == count) < 0.4 for count in (1, 2, 3))
    assert max(counts) == 3
    labels = np.bincount([shape.label for shape in singles], minlength=len(SHAPES_CLASSES))
    assert labels.min() / len(singles) > 0.13
    assert labels.max() / len(singles) < 0.2


def test_scales_span_a_tenfold_range_evenly(drawn):
    extents = np.array(
        [
            max(shape.bbox[2:])
            for _, objects in drawn
            for shape in objects
            if not shape.is_crowd and shape.mask.sum() == shape.full_area
        ]
    )
    extents = extents[extents > 7]
    assert 10 < extents.min() < 13 and 110 < extents.max() < 117
    thirds = np.histogram(extents, bins=128 * np.geomspace(0.08, 0.91, 4))[0] / len(extents)
    assert thirds.sum() == pytest.approx(1)
    assert thirds.min() > 0.2


@pytest.mark.parametrize('split', generated_set.SPLITS)
def test_annotations_on_disk_agree_with_the_pictures(small_set, split):
    content = read_annotations(small_set, split)
    assert [category['name'] for category in content['categories']] == list(SHAPES_CLASSES)
    assert [category['id'] for category in content['categories']] == [1, 2, 3, 4, 5, 6]
    drawn_objects = []
    for info in content['images']:
        picture = cv2.imread(str(small_set / split / info['file_name']))[..., ::-1]
        image, objects = Shapes(**SMALL).draw(split, info['id'])
        assert np.array_equal(picture, image)
        assert image.shape[:2] == (info['height'], info['width'])
        drawn_objects += [(info['id'], shape) for shape in objects]
    assert len({annotation['id'] for annotation in content['annotations']} - {0}) == len(
        content['annotations']
    )
    for annotation, (image_id, shape) in zip(content['annotations'], drawn_objects, strict=True):
        runs = coco_mask.frPyObjects(annotation['segmentation'], 64, 64)
        assert np.array_equal(coco_mask.decode(runs), shape.mask)
        assert annotation['bbox'] == coco_mask.toBbox(runs).tolist()
        assert annotation['area'] == coco_mask.area(runs)
        assert annotation['iscrowd'] == shape.is_crowd
        assert (annotation['image_id'], annotation['category_id']) == (image_id, shape.label + 1)


def test_images_to_choose_by_do_not_touch_the_others(small_set, tmp_path):
    """As many as validation images unless told, none of which is one of theirs."""
    assert len(list((small_set / 'tune').iterdir())) == SMALL['num_val']
    Shapes(**SMALL, num_tune=15).write(tmp_path / 'more')
    before, after = contents(small_set), contents(tmp_path / 'more')
    assert {name for name in before if before[name] != after[name]} == {
        generated_set.MANIFEST,
        'annotations/instances_tune.json',
    }
    assert sum(name.startswith('tune/') for name in after) == 15
    pictures = [data for name, data in after.items() if name.endswith('.png')]
    assert len(set(pictures)) == len(pictures)


@pytest.mark.parametrize(
    'config',
    ['small/smca_r18w16_1xb8-11e_shapes128.py', 'small/detr_r18w16_1xb4-3ki_shapes192.py'],
)
def test_environment_chooses_the_split_of_evaluation(config, monkeypatch):
    for split in ('val', 'tune'):
        if split != 'val':
            monkeypatch.setenv('EVAL_SPLIT', split)
        cfg = Config.fromfile(ROOT / 'configs' / config)
        for loader, evaluator in (
            (cfg.val_dataloader, cfg.val_evaluator),
            (cfg.test_dataloader, cfg.test_evaluator),
        ):
            dataset = loader.dataset
            assert dataset.ann_file == f'annotations/instances_{split}.json'
            assert dataset.data_prefix.img == f'{split}/'
            assert evaluator.ann_file == dataset.data_root + dataset.ann_file
        assert cfg.train_dataloader.dataset.data_prefix.img == 'train/'


def test_config_reads_the_set(small_set):
    """MMDetection's dataset and pipeline, as the config sets them up, give what was drawn."""
    cfg = load_config(small_set)
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert dataset.metainfo['classes'] == SHAPES_CLASSES
    assert len(dataset) == 40  # empty images too
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample['inputs'].shape == (3, 128, 128)
        data = sample['data_samples']
        _, objects = Shapes(**SMALL).draw('train', data.img_id)
        singles = [shape for shape in objects if not shape.is_crowd]
        boxes = 2.0 * np.array([shape.bbox for shape in singles]).reshape(-1, 4)
        if data.flip:
            boxes[:, 0] = 128 - boxes[:, 0] - boxes[:, 2]
        boxes[:, 2:] += boxes[:, :2]
        assert data.gt_instances.labels.tolist() == [shape.label for shape in singles]
        assert np.allclose(data.gt_instances.bboxes.tensor, boxes)
        assert len(data.ignored_instances) == len(objects) - len(singles)


def test_coco_metric_gives_the_truth_full_marks(small_set):
    cfg = load_config(small_set)
    dataset = DATASETS.build(cfg.val_dataloader.dataset)
    metric = METRICS.build(cfg.val_evaluator)
    metric.dataset_meta = dataset.metainfo
    for data in (dataset[index]['data_samples'] for index in range(len(dataset))):
        truth = data.gt_instances
        data.pred_instances = truth.new(
            bboxes=truth.bboxes.tensor, labels=truth.labels, scores=truth.labels * 0.0 + 1
        )
        metric.process({}, [data.to_dict()])
    assert metric.evaluate(len(dataset))['coco/bbox_mAP'] == 1


def test_interrupted_set_is_redone(small_set, tmp_path, monkeypatch):
    folder = tmp_path / 'set'
    write = cv2.imwrite

    def interrupted(name, image):
        if name.endswith('000030.png'):
            raise KeyboardInterrupt
        return write(name, image)

    with monkeypatch.context() as patch:
        patch.setattr(cv2, 'imwrite', interrupted)
        with pytest.raises(KeyboardInterrupt):
            Shapes(**SMALL).write(folder)
    assert not folder.exists()
    (tmp_path / 'set.mmsmca.partial/train/999999.png').touch()
    assert Shapes(**SMALL).write(folder)
    assert contents(tmp_path) == {f'set/{k}': v for k, v in contents(small_set).items()}


def test_a_set_is_written_by_one_process_at_a_time(small_set, tmp_path, monkeypatch):
    """Two calls at once would mix their files, and each delete the other's."""
    folder = tmp_path / 'set'
    write, errors = cv2.imwrite, []

    def another_call(name, image):
        if name.endswith('train/000000.png'):
            with pytest.raises(UserError, match='another process is writing .*set') as caught:
                Shapes(**SMALL).write(folder)
            errors.append(caught)
        return write(name, image)

    monkeypatch.setattr(cv2, 'imwrite', another_call)
    assert Shapes(**SMALL).write(folder)
    assert len(errors) == 1
    assert contents(tmp_path) == {f'set/{k}': v for k, v in contents(small_set).items()}


def test_nothing_on_disk_is_replaced(small_set, tmp_path):
    """A second call does nothing; other parameters and other folders are refused."""
    before = {path: path.stat().st_mtime_ns for path in small_set.rglob('*')}
    assert not Shapes(**SMALL).write(small_set)
    with pytest.raises(DataError, match=r'small .*seed 3 \(asked for: 4\).*choose another'):
        Shapes(**{**SMALL, 'seed': 4}).write(small_set)
    assert {path: path.stat().st_mtime_ns for path in small_set.rglob('*')} == before

    few = Shapes(num_train=1, num_val=1, size=32)
    assert few.write(tmp_path)  # an empty folder
    (tmp_path / 'notes.txt').write_text('mine')
    assert not few.write(tmp_path)
    for path in (tmp_path / 'train', tmp_path / 'notes.txt'):
        with pytest.raises(DataError, match='not a generated set: delete it or choose another'):
            few.write(path)
    assert (tmp_path / 'notes.txt').read_text() == 'mine'


@pytest.mark.parametrize(
    ('name', 'value', 'allowed'),
    [
        ('num_train', 0, 'at least 1'),
        ('num_val', -1, 'at least 1'),
        ('num_tune', 0, 'at least 1'),
        ('size', 31, 'at least 32'),
        ('max_objects', 0, 'at least 1'),
        ('seed', 2**32, '0 to 4294967295'),
    ],
)
def test_bad_parameters_are_named_before_anything_is_written(tmp_path, name, value, allowed):
    with pytest.raises(UserError, match=f'^{name} is .*{allowed}'):
        Shapes(**{name: value}).write(tmp_path / 'set')
    assert not list(tmp_path.iterdir())


def test_command_line(tmp_path, monkeypatch, capsys):
    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['make_shapes.py', str(tmp_path / 'set'), *arguments])
        return runpy.run_path(str(ROOT / 'tools/make_shapes.py'))['main']()

    options = '--train 2 --val 1 --tune 3 --size 32 --max-objects 8 --seed 7'.split()
    assert run(*options) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f'{tmp_path / "set"}: written'
    manifest = json.loads((tmp_path / 'set' / generated_set.MANIFEST).read_text())
    assert manifest == dict(
        set='shapes', format_version=1, num_train=2, num_val=1, num_tune=3, size=32,
        max_objects=8, seed=7,
    )  # fmt: skip
    assert run(*options) == 0
    assert 'already there' in capsys.readouterr().out
    assert run() == 2
    assert 'error: ' in capsys.readouterr().err
