"""Data sets and evaluators: what is used of their files is as in MMDetection, or it is said."""

import math
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from mmdet.registry import DATASETS
from mmengine.config import Config, ConfigDict
from mmengine.registry import init_default_scope
from runs import CLASSES, assert_names, coco, write_json

from mmsmca.checks.preflight import check_config
from mmsmca.errors import ConfigError, DataError

TRAIN = 'train_dataloader.dataset'
LABELS = 'annotations/instances_{}.json'


# (change, kind of error, words of the message)
MISSING = [
    (
        {'val_evaluator.ann_file': '/no/val.json'},
        DataError,
        ['val_evaluator.ann_file: ', '/no/val'],
    ),
    (
        {'val_dataloader.dataset.data_prefix.img': 'no'},
        DataError,
        ['val_dataloader.dataset.data_prefix'],
    ),
    (
        {f'{TRAIN}.data_prefix': dict(_delete_=True, img_path='train/')},
        ConfigError,
        [f'{TRAIN}.data_prefix', "'img'"],
    ),
    ({f'{TRAIN}.ann_fil': 1}, ConfigError, ["argument 'ann_fil'", 'Correct its keys']),
    ({'model.bbox_head.num_classes': 80}, ConfigError, ['num_classes is 80', '6 classes', '=6']),
    (
        {'model.bbox_head.num_classes': 80, f'{TRAIN}.type': 'VOCDataset'},
        ConfigError,
        ['num_classes is 80', f'{TRAIN} has 6'],
    ),
    (
        {f'{TRAIN}.metainfo.classes': 'disc'},
        ConfigError,
        [f"{TRAIN}.metainfo.classes is 'disc'", "('first',)"],
    ),
    # A relative path is shown in full.
    (
        {f'{TRAIN}.data_root': 'no/'},
        DataError,
        [f'{TRAIN}.ann_file', f'{Path.cwd()}/no/annotations', 'does not exist', '--cfg-options'],
    ),
]


@pytest.mark.parametrize('case', MISSING, ids=lambda case: next(iter(case[0])))
def test_data_that_cannot_be_found(case: tuple, cfg: Config, refused):
    change, kind, words = case
    cfg.merge_from_dict(change)
    refused(kind, 'train val', *words)


def test_only_the_data_of_the_run_is_needed(cfg: Config, root: Path):
    (root / LABELS.format('train')).unlink()
    check_config(cfg, ('test',))


def wrapper(name: str, **arguments: object) -> Callable:
    return lambda dataset: dict(type=name, dataset=dataset, **arguments)


def concatenation(dataset: dict) -> dict:
    return dict(type='ConcatDataset', datasets=[dataset])


@pytest.mark.parametrize(
    ('wrap', 'key'),
    [
        (wrapper('ClassBalancedDataset', oversample_thr=0.1), 'dataset.dataset'),
        (
            lambda d: wrapper('RepeatDataset', times=2)(concatenation(d)),
            'dataset.dataset.datasets.0',
        ),
    ],
)
def test_wrapped_datasets_are_checked(cfg: Config, wrap, key: str, refused):
    good = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = ConfigDict(wrap(good))
    check_config(cfg, ('train', 'val'))
    cfg.train_dataloader.dataset = ConfigDict(wrap(dict(good, ann_file='gone.json')))
    refused(DataError, 'train', f'train_dataloader.{key}.ann_file', 'gone.json')


@pytest.mark.parametrize(
    'changes',
    [
        dict(type='VOCDataset'),
        dict(type='LVISV1Dataset'),
        dict(data_prefix=dict(img='https://host/train/')),
        dict(ann_file='https://host/train.json'),
        dict(backend_args=dict(backend='petrel')),
    ],
)
def test_other_datasets_are_left_alone(cfg: Config, changes: dict):
    cfg.train_dataloader.dataset.update(data_root='/no/such/root')
    cfg.train_dataloader.dataset.update(changes)
    check_config(cfg, ('train',))


# Annotation files --------------------------------------------------------------------------------


def annotation(**values: object) -> Callable:
    return lambda content: content['annotations'][1].update(values)


def image(**values: object) -> Callable:
    return lambda content: content['images'][1].update(values)


def each(**values: object) -> Callable:
    return lambda content: [entry.update(values) for entry in content['annotations']]


def without(*keys: str) -> Callable:
    """Drop a key of the file, or of the first entry of one of its lists."""
    return lambda content: (content if len(keys) == 1 else content[keys[0]][0]).pop(keys[-1])


def unchanged(content: dict) -> None:
    pass


# What is wrong with a training file: (change of a good file, or a text; words of the message)
FAULTS = {
    'empty': ('', ['cannot be read as JSON', 'Restore the file']),
    'cut': ('{"images": [', ['cannot be read as JSON', 'Restore the file']),
    'byte order mark': ('\ufeff{}', ['byte order mark', 'Save it as UTF-8']),
    'a list': ('[]', ["no list 'images'", 'Specify an']),
    'no categories': (without('categories'), ["no list 'categories'", 'Specify an']),
    'no annotations': (without('annotations'), ['no annotations to train on', 'Specify an']),
    'no images': (lambda content: content.update(images=[]), ['lists no images', 'Specify an']),
    'no height': (without('images', 'height'), ["images[0] has no 'height'", 'Add it']),
    'no area': (without('annotations', 'area'), ["annotations[0] has no 'area'", 'Add it']),
    'no name': (without('categories', 'name'), ["categories[0] has no 'name'", 'Add it']),
    'NaN in a box': (annotation(bbox=[8, math.nan, 64, 48]), ['annotations[1].bbox', 'id 2']),
    'three numbers': (annotation(bbox=[8, 8, 64]), ['annotations[1].bbox', 'four finite']),
    'box of words': (annotation(bbox=['8', '8', '64', '48']), ['annotations[1].bbox', 'width']),
    'NaN as area': (annotation(area=math.nan), ['annotations[1].area is nan', 'finite']),
    'null': (annotation(category_id=None), ['annotations[1].category_id is None', 'Correct']),
    'unknown category': (annotation(category_id=99), ['category ids 99', 'Add them']),
    'image that is a list': (annotation(image_id=[1]), ['annotations[1].image_id is [1]']),
    'id twice': (annotation(id=1), ["'annotations' with the same id: 1", 'Give each a unique id']),
    'image id twice': (image(id=0), ["'images' with the same id: 0", 'Give each a unique id']),
    'category name twice': (
        lambda content: content['categories'].append(dict(id=7, name='disc')),
        ['several categories named disc', 'Merge them'],
    ),
    'image without width': (image(width=0), ['images[1].width is 0', 'positive']),
    'width in quotes': (image(width='128'), ["images[1].width is '128'", 'number of pixels']),
    'image without a name': (image(file_name=''), ["images[1].file_name is ''", 'a path']),
    'corners': (
        each(bbox=[40, 40, 120, 90], area=4000),
        ['all 3 boxes look like corners', '3 of them extend', 'x2 - x1'],
    ),
    'corners at the top left, told by their areas': (
        each(bbox=[8, 8, 56, 40], area=1536),
        ['all 3 boxes look like corners', '0 of them extend'],
    ),
    'fractions': (
        each(bbox=[0.1, 0.1, 0.5, 0.5], area=0.25),
        ['all 3 boxes lie between 0 and 1', 'Multiply'],
    ),
    'nothing but crowds': (each(iscrowd=1), ['no annotations to train on', 'neither a crowd']),
    'nothing but empty boxes': (each(bbox=[0, 0, 0, 0]), ['no annotations to train on']),
}


@pytest.mark.filterwarnings('ignore:.*training leaves out')
@pytest.mark.parametrize('case', FAULTS)
def test_annotation_file(case: str, cfg: Config, root: Path, refused):
    change, words = FAULTS[case]
    path = root / LABELS.format('train')
    if isinstance(change, str):
        path.write_text(change)
    else:
        content = coco()
        change(content)
        write_json(path, content)
    refused(DataError, 'train', f'{TRAIN}.ann_file', path, *words)


# What is wrong with the file of an evaluator: (change, words of the message)
UNEVALUABLE = {
    'no annotations': (without('annotations'), ['needs annotations', 'format_only=True']),
    'no crowds': (without('annotations', 'iscrowd'), ["'iscrowd'", 'Complete']),
    'all crowds': (each(iscrowd=1), ['crowds: AP would be -1']),
    'id 0': (annotation(id=0), ['ids 0', 'Number the', 'from 1']),
    'negative id': (annotation(id=-5), ['ids -5']),
    'fraction as id': (annotation(id=1.5), ['ids 1.5']),
    'text as id': (annotation(id='a'), ['ids a']),
    'categories missing': (
        lambda content: content['categories'].pop(),
        ['ring', 'val_dataloader.dataset.metainfo=dict(classes=...)', 'bbox_head.num_classes'],
    ),
    'other order': (
        lambda content: content.update(categories=coco(CLASSES[::-1])['categories']),
        ["'ring' there and 'disc' here", 'List them'],
    ),
}


@pytest.mark.parametrize('case', UNEVALUABLE)
def test_file_that_cannot_be_evaluated(case: str, cfg: Config, root: Path, refused):
    change, words = UNEVALUABLE[case]
    content = coco()
    change(content)
    write_json(root / 'val.json', content)
    cfg.val_evaluator.ann_file = f'{root}/val.json'
    refused(DataError, 'val', f'val_evaluator.ann_file: {root}/val.json', *words)
    if 'format_only=True' in words:  # Test images need no annotations.
        cfg.val_evaluator.format_only = True
        check_config(cfg, ('val',))
    if case == 'no crowds':
        cfg.val_evaluator.type = 'LVISMetric'
        check_config(cfg, ('val',))


def test_image_ids_that_are_strings(cfg: Config, root: Path, refused):
    content = coco()
    for entry in content['images']:
        entry['id'] = f'i{entry["id"]}'
    for entry in content['annotations']:
        entry['image_id'] = f'i{entry["image_id"]}'
    write_json(root / LABELS.format('val'), content)
    words = 'ids of its images are strings', "val_evaluator.type='CocoMetric'"
    refused(DataError, 'val', *words)
    cfg.val_evaluator.type = 'CocoMetric'
    check_config(cfg, ('val',))


def test_more_objects_than_queries(cfg: Config, root: Path):
    content = coco()
    box = content['annotations'][0]
    content['annotations'] += [dict(box, id=10 + i) for i in range(30)]
    write_json(root / LABELS.format('train'), content)
    with pytest.warns(UserWarning, match='1 of the images .*num_queries=25 .*image 0 has 31'):
        check_config(cfg, ('train',))


def test_further_categories_in_file_pass(cfg: Config, root: Path):
    content = coco(classes=('bar', *CLASSES))
    content['annotations'][0]['category_id'] = 2
    write_json(root / LABELS.format('train'), content)
    check_config(cfg, ('train',))


def test_images_in_subfolders(cfg: Config, root: Path, refused):
    content = coco()
    for i, entry in enumerate(content['images']):
        entry['file_name'] = f'part{i % 2}/{i}.jpg'
        (root / f'train/part{i % 2}').mkdir(exist_ok=True)
        (root / f'train/{i}.jpg').rename(root / 'train' / entry['file_name'])
    write_json(root / LABELS.format('train'), content)
    check_config(cfg, ('train',))
    (root / 'train/part1/1.jpg').rename(root / 'train/part0/1.jpg')
    words = '1 of the 3 images', root / 'train/part1/1.jpg', 'Restore them'
    refused(DataError, 'train', *words)


# What is used ------------------------------------------------------------------------------------


def low_image(content: dict) -> None:
    content['images'][1]['height'] = 40


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
    path = root / LABELS.format('train')
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
def test_nothing_left_is_refused(case: str, cfg: Config, root: Path, refused):
    change, keys, kind, words = NOTHING_LEFT[case]
    content = coco()
    content['categories'].append(dict(id=7, name='other'))
    change(content)
    write_json(root / LABELS.format('train'), content)
    cfg.train_dataloader.dataset.update(keys)
    refused(kind, 'train', *words)


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
    write_json(root / LABELS.format('val'), content)
    (message,) = warned(cfg, 'val')
    assert_names(message, 'val_evaluator.ann_file', words, '(images 1)', 'counts them as objects')


def test_evaluator_of_other_images(cfg: Config, root: Path):
    ann_file = root / LABELS.format('val')
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


def test_evaluation_of_images_that_are_trained_on(cfg: Config):
    cfg.val_dataloader.dataset.data_prefix.img = 'train/../train/'
    with pytest.warns(UserWarning, match='val_dataloader.dataset: 3 of its 3 images are also tr'):
        check_config(cfg, ('train', 'val'))


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
    write_json(root / LABELS.format('train'), coco(classes=classes))
    cfg.train_dataloader.dataset.metainfo = ConfigDict(classes=classes)
    cfg.model.bbox_head.num_classes = 81
    with pytest.warns(UserWarning, match='palette has 80 colours for 81 classes.*Set it to None'):
        check_config(cfg, ('train',))
