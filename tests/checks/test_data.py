"""What a data set uses of its files: as MMDetection's own, or it is said before the run."""

import warnings
from pathlib import Path

import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from runs import assert_names, coco, write_json

from mmsmca.checks.preflight import check_config
from mmsmca.errors import ConfigError, DataError

TRAIN = 'train_dataloader.dataset'


def annotation(**values: object):
    return lambda content: content['annotations'][1].update(values)


def each(**values: object):
    return lambda content: [entry.update(values) for entry in content['annotations']]


def low_image(content: dict) -> None:
    content['images'][1]['height'] = 40


def unchanged(content: dict) -> None:
    pass


# name: (change of the file, keys of the data set, what is said of three objects in three images)
LEFT_OUT = {
    'nothing': (unchanged, {}, None),
    'box half outside': (annotation(bbox=[100, -8, 64, 48]), {}, None),
    'no width': (annotation(bbox=[8, 8, 0, 48]), {}, '(1 with a box outside'),
    'negative width': (annotation(bbox=[72, 8, -64, 48]), {}, '(images 1)'),
    'half a pixel': (annotation(bbox=[8, 8, 64, 0.5]), {}, 'less than a pixel'),
    'outside the image': (annotation(bbox=[128, 8, 64, 48]), {}, 'outside the image'),
    'above the image': (annotation(bbox=[8, -48, 64, 48]), {}, 'outside the image'),
    'no area': (annotation(area=0), {}, 'without area'),
    'negative area': (annotation(area=-1), {}, 'without area'),
    'image that is not listed': (annotation(image_id=7), {}, 'does not list (ids 2)'),
    'ignore': (annotation(ignore=1), {}, "annotations (1 with 'ignore': 1) of"),
    'a crowd, as in evaluation': (annotation(iscrowd=1), {}, None),
    'a category of no class': (annotation(category_id=7), {}, None),
    'mostly other categories': (
        lambda content: [a.update(category_id=7) for a in content['annotations'][:2]],
        {},
        'annotations (2 of other categories)',
    ),
    'min_size': (
        low_image,
        {'filter_cfg': dict(min_size=41)},
        'images (1 smaller than 41 pixels (filter_cfg.min_size=41))',
    ),
    'large enough': (low_image, {'filter_cfg': dict(min_size=40)}, None),
    'no filter': (low_image, {'filter_cfg': None}, None),
    'empty image': (
        lambda content: content['annotations'].pop(),
        {'filter_cfg': dict(filter_empty_gt=True)},
        None,
    ),
    'mostly empty images': (
        lambda content: content.update(annotations=content['annotations'][:1]),
        {'filter_cfg': dict(filter_empty_gt=True)},
        'images (2 without a box of its classes',
    ),
    'first images': (unchanged, {'indices': 2}, 'images (1 not among its indices)'),
    'last images': (unchanged, {'indices': -1}, 'images (2 not among its indices)'),
    'chosen images': (unchanged, {'indices': [0, 2]}, 'images (1 not among its indices)'),
    'first images after the filter': (
        low_image,
        {'filter_cfg': dict(min_size=41), 'indices': 1},
        'min_size=41), 1 not among',
    ),
}


def warned(cfg: Config, *phases: str) -> list[str]:
    """What the checks say of data."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        check_config(cfg, phases)
    return [str(w.message) for w in caught if 'ann_file' in str(w.message)]


@pytest.mark.parametrize('case', LEFT_OUT)
def test_what_training_leaves_out_is_said(case: str, cfg: Config, root: Path):
    change, keys, words = LEFT_OUT[case]
    path = root / 'annotations/instances_train.json'
    content = coco()
    content['categories'].append(dict(id=7, name='other'))
    change(content)
    write_json(path, content)
    cfg.train_dataloader.dataset.update(keys)
    messages = warned(cfg, 'train')
    assert len(messages) == (words is not None)
    if words:
        assert_names(messages[0], f'{TRAIN}.ann_file', path, words)
    # MMDetection uses what the line says, or all of it.
    init_default_scope('mmdet')
    dataset = DATASETS.build(dict(cfg.train_dataloader.dataset, pipeline=[]))
    instances = [x for i in range(len(dataset)) for x in dataset.get_data_info(i)['instances']]
    objects = sum(not instance['ignore_flag'] for instance in instances)
    if words and 'does not list' not in words:
        assert f'; {objects} objects in {len(dataset)} images are left' in messages[0]


# name: (change of the file, keys of the data set, kind of the error, what it says)
NOTHING_LEFT = {
    'all ignored': (each(ignore=1), {}, DataError, ['no annotations', "nor marked 'ignore'"]),
    'min_size': (
        unchanged,
        {'filter_cfg': dict(min_size=100)},
        DataError,
        ['3 smaller than 100 pixels', 'no image is left', f'{TRAIN}.filter_cfg'],
    ),
    'no box of a class': (
        each(category_id=7),
        {'filter_cfg': dict(filter_empty_gt=True)},
        DataError,
        ['3 without a box of its classes', 'no image is left'],
    ),
    'no box of a class, unfiltered': (each(category_id=7), {}, DataError, ['no annotations']),
    'too many indices': (
        unchanged,
        {'indices': 2000},
        ConfigError,
        [f'{TRAIN}.indices=2000', 'not below 3', 'None'],
    ),
    'index of no image': (unchanged, {'indices': [0, 3]}, ConfigError, [f'{TRAIN}.indices']),
}


@pytest.mark.filterwarnings('ignore:.*training leaves out')
@pytest.mark.parametrize('case', NOTHING_LEFT)
def test_nothing_left_is_refused(case: str, cfg: Config, root: Path):
    change, keys, kind, words = NOTHING_LEFT[case]
    content = coco()
    content['categories'].append(dict(id=7, name='other'))
    change(content)
    write_json(root / 'annotations/instances_train.json', content)
    cfg.train_dataloader.dataset.update(keys)
    with pytest.raises(kind) as caught:
        check_config(cfg, ('train',))
    assert_names(str(caught.value), *words)


@pytest.mark.filterwarnings('ignore:.*training leaves out')
def test_images_of_the_background_beside_others(cfg: Config, root: Path):
    """One data set without objects is fine where another has some."""
    dataset = cfg.train_dataloader.dataset
    write_json(root / 'none.json', dict(coco(), annotations=[]))
    cfg.train_dataloader.dataset = ConfigDict(
        type='ConcatDataset', datasets=[dataset, dict(dataset, ann_file='none.json')]
    )
    check_config(cfg, ('train',))


def test_only_images_that_are_used_must_exist(cfg: Config, root: Path):
    """A subset's, and those that the filter leaves."""
    (root / 'train/2.jpg').unlink()
    cfg.train_dataloader.dataset['indices'] = 2
    warned(cfg, 'train')
    (root / 'train/1.jpg').unlink()
    with pytest.raises(DataError, match='1 of the 2 images .*train/1.jpg'):
        warned(cfg, 'train')


@pytest.mark.parametrize(
    ('values', 'words'), [({'ignore': 1}, "'ignore': 1"), ({'area': 0}, 'area')]
)
def test_evaluation_counts_what_training_leaves_out(cfg: Config, root: Path, values, words):
    content = coco()
    content['annotations'][1].update(values)
    write_json(root / 'annotations/instances_val.json', content)
    (message,) = warned(cfg, 'val')
    assert_names(message, 'val_evaluator.ann_file', words, '(images 1)', 'counts them as objects')


def test_evaluator_of_other_images(cfg: Config, root: Path):
    ann_file = root / 'annotations/instances_val.json'
    cfg.test_evaluator.ann_file = str(root / 'other.json')
    write_json(root / 'other.json', coco(num_images=2))
    with pytest.raises(DataError, match=f'test_evaluator.*does not have 1 .*ids 2.*{ann_file}'):
        check_config(cfg, ('test',))
    # An example's own file, whose ids are the same numbers.
    content = coco()
    content['images'][1]['file_name'] = 'shapes/000001.png'
    write_json(root / 'other.json', content)
    with pytest.raises(DataError, match='has other images with the ids of 1 of .*ids 1'):
        check_config(cfg, ('test',))


@pytest.mark.parametrize('images', [dict(indices=2), dict(ann_file='fewer.json')])
def test_evaluation_of_a_part_counts_the_rest_as_missed(cfg: Config, root: Path, images: dict):
    write_json(root / 'fewer.json', coco(num_images=2))
    cfg.val_dataloader.dataset.update(images)
    (message,) = warned(cfg, 'val')
    assert_names(message, 'val_evaluator.ann_file', 'has 1 images', 'count as not found')


def test_palette_follows_the_classes(cfg: Config, root: Path):
    """An example's colours do not become those of other classes, and a palette is long enough."""
    assert 'palette' not in cfg.train_dataloader.dataset.metainfo
    cfg.train_dataloader.dataset.metainfo.palette = [(0, 0, 0)] * 5
    with pytest.raises(ConfigError, match=f'{TRAIN}.metainfo.palette has 5 colours for 6 classes'):
        check_config(cfg, ('train',))
    cfg.train_dataloader.dataset.metainfo.palette = ((0, 0, 0),) * 6
    with pytest.raises(ConfigError, match='palette is a tuple.*Make it a list'):
        check_config(cfg, ('train',))
    cfg.train_dataloader.dataset.metainfo.palette = None
    check_config(cfg, ('train',))
    # CocoDataset's own colours are for 80 classes, and nobody chose them.
    classes = tuple(f'c{i}' for i in range(81))
    write_json(root / 'annotations/instances_train.json', coco(classes=classes))
    cfg.train_dataloader.dataset.metainfo = ConfigDict(classes=classes)
    cfg.model.bbox_head.num_classes = 81
    with pytest.warns(UserWarning, match='palette has 80 colours for 81 classes.*Set it to None'):
        check_config(cfg, ('train',))
