"""What cannot work is refused before the first iteration, with key or file and remedy."""

import pickle
from argparse import Namespace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from runs import (
    CLASSES,
    HEAD_WEIGHT,
    Payload,
    assert_names,
    coco,
    model_state,
    on_data,
    save_checkpoint,
    write_json,
)
from utils import load_config

from mmsmca import launch
from mmsmca.checks import load_image
from mmsmca.checks.config import load_config as load_file
from mmsmca.checks.load_image import ImageError, LoadImage
from mmsmca.checks.preflight import check_config
from mmsmca.errors import ConfigError, DataError


def refusal(kind: type[Exception], cfg: Config, *phases: str) -> str:
    """The message with which ``check_config`` refuses a config; it must be a single line."""
    with pytest.raises(kind) as caught:
        check_config(cfg, phases)
    message = str(caught.value)
    assert '\n' not in message
    return message


def test_good_data_and_checkpoint_pass(cfg: Config, tmp_path: Path):
    cfg.load_from = save_checkpoint(tmp_path / 'good.pth')
    before = sorted(tmp_path.rglob('*'))
    check_config(cfg, ('train', 'val'))
    check_config(cfg, ('test',))
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize(('phase', 'split'), [('train', 'train'), ('val', 'val'), ('test', 'val')])
def test_missing_annotation_file(cfg: Config, root: Path, phase: str, split: str):
    path = root / f'annotations/instances_{split}.json'
    path.unlink()
    message = refusal(DataError, cfg, phase)
    assert_names(
        message, f'{phase}_dataloader.dataset.ann_file', path, 'does not exist', '--cfg-options'
    )


# (change, kind of error, words of the message)
DATA = [
    (
        {'val_evaluator.ann_file': '/no/val.json'},
        DataError,
        ['val_evaluator.ann_file', '/no/val.json'],
    ),
    (
        {'val_dataloader.dataset.data_prefix.img': 'no'},
        DataError,
        ['val_dataloader.dataset.data_prefix'],
    ),
    (
        {'train_dataloader.dataset.data_prefix': dict(_delete_=True, img_path='train/')},
        ConfigError,
        ['train_dataloader.dataset.data_prefix', "'img'"],
    ),
    (
        {'train_dataloader.dataset.ann_fil': 1},
        ConfigError,
        ["argument 'ann_fil'", 'Correct its keys'],
    ),
    ({'model.bbox_head.num_classes': 80}, ConfigError, ['num_classes is 80', '6 classes', '=6']),
    (
        {'train_dataloader.dataset.metainfo.classes': 'disc'},
        ConfigError,
        ["train_dataloader.dataset.metainfo.classes is 'disc'", "('first',)"],
    ),
    # A relative path is shown in full.
    ({'train_dataloader.dataset.data_root': 'no/'}, DataError, [f'{Path.cwd()}/no/annotations']),
]


@pytest.mark.parametrize('case', DATA, ids=lambda case: next(iter(case[0])))
def test_data_that_cannot_be_found(case: tuple, cfg: Config):
    change, kind, words = case
    cfg.merge_from_dict(change)
    assert_names(refusal(kind, cfg, 'train', 'val'), *words)


def test_only_the_data_of_the_run_is_needed(cfg: Config, root: Path):
    (root / 'annotations/instances_train.json').unlink()
    check_config(cfg, ('test',))


def wrapper(name: str, **arguments: object):
    return lambda dataset: dict(type=name, dataset=dataset, **arguments)


def concatenation(dataset: dict) -> dict:
    return dict(type='ConcatDataset', datasets=[dataset])


@pytest.mark.parametrize(
    ('wrap', 'key'),
    [
        (wrapper('RepeatDataset', times=2), 'dataset.dataset'),
        (wrapper('ClassBalancedDataset', oversample_thr=0.1), 'dataset.dataset'),
        (wrapper('MultiImageMixDataset', pipeline=[]), 'dataset.dataset'),
        (concatenation, 'dataset.datasets.0'),
        (
            lambda d: wrapper('RepeatDataset', times=2)(concatenation(d)),
            'dataset.dataset.datasets.0',
        ),
    ],
)
def test_wrapped_datasets_are_checked(cfg: Config, wrap, key: str):
    good = cfg.train_dataloader.dataset
    cfg.train_dataloader.dataset = ConfigDict(wrap(good))
    check_config(cfg, ('train', 'val'))
    cfg.train_dataloader.dataset = ConfigDict(wrap(dict(good, ann_file='gone.json')))
    assert_names(refusal(DataError, cfg, 'train'), f'train_dataloader.{key}.ann_file', 'gone.json')


@pytest.mark.parametrize('text', ['', '{"images": [', 'not json', '\0' * 64])
def test_annotations_that_are_not_json(cfg: Config, root: Path, text: str):
    path = root / 'annotations/instances_train.json'
    path.write_text(text)
    message = refusal(DataError, cfg, 'train')
    assert_names(message, path, 'cannot be read as JSON', 'Restore the file')


@pytest.mark.parametrize(
    ('change', 'named'),
    [
        (lambda c: [c], "no list 'images'"),
        (lambda c: c.pop('images'), "no list 'images'"),
        (lambda c: c.pop('categories'), "no list 'categories'"),
        (lambda c: c.update(annotations={}), "no list 'annotations'"),
        (lambda c: c['images'][1].pop('height'), "images[1] has no 'height'"),
        (lambda c: c['annotations'][2].pop('area'), "annotations[2] has no 'area'"),
        (lambda c: c['categories'][0].pop('name'), "categories[0] has no 'name'"),
        (lambda c: c.update(images=[]), 'lists no images'),
        (lambda c: c.pop('annotations'), 'no annotations to train on'),
        (lambda c: c['annotations'][0].update(category_id=17), 'category ids 17'),
    ],
)
def test_annotations_that_are_not_coco(cfg: Config, root: Path, change, named: str):
    path = root / 'annotations/instances_train.json'
    content = coco()
    replaced = change(content)
    write_json(
        path, replaced if isinstance(replaced, list) and named.endswith("'images'") else content
    )
    message = refusal(DataError, cfg, 'train')
    assert_names(message, path, named)
    assert any(remedy in message for remedy in ('Specify an', 'Add it', 'Add them'))


def test_test_images_need_no_annotations(cfg: Config, root: Path):
    content = coco()
    del content['annotations']
    write_json(root / 'annotations/instances_val.json', content)
    message = refusal(DataError, cfg, 'test')
    assert_names(message, 'test_evaluator.ann_file', 'format_only=True')
    cfg.test_evaluator.format_only = True
    check_config(cfg, ('test',))


def test_evaluation_needs_iscrowd(cfg: Config, root: Path):
    content = coco()
    del content['annotations'][0]['iscrowd']
    write_json(root / 'annotations/instances_val.json', content)
    assert_names(refusal(DataError, cfg, 'val'), 'val_evaluator.ann_file', "'iscrowd'", 'Complete')


@pytest.mark.parametrize('first', [0, -5, 1.5, 'a'])
def test_annotation_ids_that_an_evaluation_misreads(cfg: Config, root: Path, first: object):
    content = coco()
    content['annotations'][0]['id'] = first
    for split in ('train', 'val'):
        write_json(root / f'annotations/instances_{split}.json', content)
    check_config(cfg, ('train',))
    message = refusal(DataError, cfg, 'val')
    assert_names(message, 'val_evaluator.ann_file', f'ids {first}', 'Number the', 'from 1')


def test_image_ids_that_are_strings(cfg: Config, root: Path):
    content = coco()
    for entry in content['images']:
        entry['id'] = f'i{entry["id"]}'
    for entry in content['annotations']:
        entry['image_id'] = f'i{entry["image_id"]}'
    for split in ('train', 'val'):
        write_json(root / f'annotations/instances_{split}.json', content)
    message = refusal(DataError, cfg, 'train', 'val')
    assert_names(message, 'ids of its images are strings', "val_evaluator.type='CocoMetric'")
    cfg.val_evaluator.type = 'CocoMetric'
    check_config(cfg, ('train', 'val'))


def test_lvis_has_no_crowds(cfg: Config, root: Path):
    content = coco()
    for entry in content['annotations']:
        del entry['iscrowd']
    write_json(root / 'annotations/instances_val.json', content)
    cfg.val_evaluator.type = 'LVISMetric'
    check_config(cfg, ('val',))


def test_nothing_but_crowds_to_evaluate(cfg: Config, root: Path):
    content = coco()
    for entry in content['annotations']:
        entry['iscrowd'] = 1
    write_json(root / 'annotations/instances_val.json', content)
    assert_names(refusal(DataError, cfg, 'val'), 'val_evaluator.ann_file', 'crowds: AP would be -1')


def test_more_objects_than_queries(cfg: Config, root: Path):
    content = coco()
    box = content['annotations'][0]
    content['annotations'] += [dict(box, id=10 + i) for i in range(30)]
    write_json(root / 'annotations/instances_train.json', content)
    with pytest.warns(UserWarning, match='1 of the images .*num_queries=25 .*image 0 has 31'):
        check_config(cfg, ('train',))


@pytest.mark.parametrize('dataset', ['VOCDataset', 'LVISV1Dataset'])
def test_classes_of_other_data_sets_are_counted(cfg: Config, dataset: str):
    cfg.train_dataloader.dataset.type = dataset
    check_config(cfg, ('train',))
    cfg.model.bbox_head.num_classes = 80
    message = refusal(ConfigError, cfg, 'train')
    assert_names(message, 'model.bbox_head.num_classes is 80', 'train_dataloader.dataset has 6')


@pytest.mark.parametrize('start', ['\ufeff', None])
def test_annotations_in_another_encoding(cfg: Config, root: Path, start: str | None):
    path = root / 'annotations/instances_train.json'
    text = path.read_text()
    path.write_bytes((start + text).encode() if start else text.encode('utf-16'))
    assert_names(refusal(DataError, cfg, 'train'), path, 'byte order mark', 'save it as UTF-8')


def test_categories_missing_in_file(cfg: Config, root: Path):
    del cfg.train_dataloader.dataset['metainfo']  # CocoDataset's own 80 classes
    cfg.model.bbox_head.num_classes = 80
    message = refusal(DataError, cfg, 'train')
    assert_names(
        message,
        root / 'annotations/instances_train.json',
        'person, bicycle',
        'train_dataloader.dataset.metainfo=dict(classes=...)',
        'model.bbox_head.num_classes',
    )


def test_categories_missing_in_file_of_evaluator(cfg: Config, tmp_path: Path):
    cfg.val_evaluator.ann_file = str(tmp_path / 'other.json')
    write_json(tmp_path / 'other.json', coco(classes=CLASSES[:5]))
    message = refusal(DataError, cfg, 'train', 'val')
    assert_names(message, 'val_evaluator.ann_file', 'ring', 'val_dataloader.dataset.metainfo')


def test_categories_in_another_order(cfg: Config, root: Path):
    write_json(root / 'annotations/instances_val.json', coco(classes=CLASSES[::-1]))
    message = refusal(DataError, cfg, 'train', 'val')
    assert_names(
        message, 'val_dataloader.dataset.ann_file', "'ring' there and 'disc' here", 'List them'
    )


def test_further_categories_in_file_pass(cfg: Config, root: Path):
    path = root / 'annotations/instances_train.json'
    content = coco(classes=('bar', *CLASSES))
    content['annotations'][0]['category_id'] = 2
    write_json(path, content)
    check_config(cfg, ('train',))


def test_missing_images(cfg: Config, root: Path):
    (root / 'train/1.jpg').unlink()
    message = refusal(DataError, cfg, 'train')
    assert_names(message, '1 of the 3 images', root / 'train/1.jpg', 'Restore them')


def test_images_in_subfolders(cfg: Config, root: Path):
    content = coco()
    for i, image in enumerate(content['images']):
        image['file_name'] = f'part{i % 2}/{i}.jpg'
        (root / f'train/part{i % 2}').mkdir(exist_ok=True)
        (root / f'train/{i}.jpg').rename(root / 'train' / image['file_name'])
    write_json(root / 'annotations/instances_train.json', content)
    check_config(cfg, ('train',))
    (root / 'train/part1/1.jpg').rename(root / 'train/part0/1.jpg')
    assert_names(refusal(DataError, cfg, 'train'), root / 'train/part1/1.jpg')


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


def test_missing_checkpoint(cfg: Config, tmp_path: Path):
    cfg.load_from = str(tmp_path / 'gone.pth')
    assert_names(
        refusal(ConfigError, cfg, 'test'), cfg.load_from, 'does not exist', 'Give the path'
    )


@pytest.mark.parametrize('keep', [0, 100, -100])
def test_truncated_checkpoint(cfg: Config, tmp_path: Path, keep: int):
    cfg.load_from = save_checkpoint(tmp_path / 'cut.pth')
    path = Path(cfg.load_from)
    path.write_bytes(path.read_bytes()[:keep])
    assert_names(refusal(ConfigError, cfg, 'test'), path, 'truncated', 'Copy it again')


def test_file_that_is_no_checkpoint(cfg: Config, root: Path):
    cfg.load_from = str(root / 'val/0.jpg')
    assert_names(refusal(ConfigError, cfg, 'test'), cfg.load_from, 'not a PyTorch checkpoint')


def test_checkpoint_with_its_log_passes_whatever_was_loaded_before(cfg: Config, tmp_path: Path):
    history = HistoryBuffer()
    history.update(0.5)
    cfg.load_from = save_checkpoint(tmp_path / 'log.pth', message_hub=dict(loss=history))
    CheckpointLoader.load_checkpoint(cfg.load_from)
    check_config(cfg, ('test',))


def test_palette_of_bytes(cfg: Config, tmp_path: Path):
    meta = dict(dataset_meta=dict(classes=CLASSES, palette=np.zeros((6, 3), np.uint8)))
    cfg.load_from = save_checkpoint(tmp_path / 'palette.pth', meta=meta)
    check_config(cfg, ('test',))


def test_checkpoint_is_not_executed(cfg: Config, tmp_path: Path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cfg.load_from = save_checkpoint(tmp_path / 'evil.pth', payload=Payload())
    assert_names(refusal(ConfigError, cfg, 'test'), cfg.load_from, 'Path', 'Save its weights alone')
    assert not Path('executed').exists()
    with open(cfg.load_from, 'wb') as file:
        pickle.dump(Payload(), file)
    assert_names(refusal(ConfigError, cfg, 'test'), cfg.load_from)
    assert not Path('executed').exists()


@pytest.mark.parametrize(
    ('content', 'named'),
    [
        ([torch.zeros(2)], 'holds a list'),
        (dict(model={'class_embed.weight': torch.zeros(91, 8)}), 'tools/convert_checkpoint.py'),
        (dict(state_dict={'roi_head.fc.weight': torch.zeros(2)}), 'no weights of SMCADETR'),
    ],
)
def test_foreign_checkpoint(cfg: Config, tmp_path: Path, content: object, named: str):
    cfg.load_from = str(tmp_path / 'foreign.pth')
    torch.save(content, cfg.load_from)
    assert_names(refusal(ConfigError, cfg, 'test'), cfg.load_from, named, 'Specify a checkpoint')


@pytest.mark.parametrize('legacy', [True, False])
def test_checkpoint_of_another_number_of_classes(cfg: Config, tmp_path: Path, legacy: bool):
    cfg.load_from = str(tmp_path / 'coco.pth')
    state = {f'module.{HEAD_WEIGHT}': torch.zeros(80, 8)}
    torch.save(state, cfg.load_from, _use_new_zipfile_serialization=not legacy)
    message = refusal(ConfigError, cfg, 'test')
    assert_names(
        message, cfg.load_from, '80 classes', 'model.bbox_head.num_classes is 6', 'Use a checkpoint'
    )


@pytest.fixture(scope='module')
def dino_config() -> Config:
    return load_config('small/smca-dino_r18w16_1xb4-3ki_shapes192.py')


def test_smca_dino_and_its_checkpoint_pass(dino_config: Config, root: Path, tmp_path: Path):
    cfg = on_data(dino_config, root)
    cfg.load_from = str(tmp_path / 'dino.pth')
    meta = dict(dataset_meta=dict(classes=CLASSES))
    torch.save(dict(meta=meta, state_dict=model_state(cfg.model)), cfg.load_from)
    check_config(cfg, ('train', 'val'))
    check_config(cfg, ('test',))
    torch.save({'bbox_head.cls_branches.0.weight': torch.zeros(80, 8)}, cfg.load_from)
    message = refusal(ConfigError, cfg, 'test')
    assert_names(message, cfg.load_from, '80 classes', 'model.bbox_head.num_classes is 6')


@pytest.mark.parametrize(
    ('changes', 'named'),
    [
        ({'decoder.layer_cfg.cross_attn_cfg.num_heads': 5}, ['num_heads=5', 'embed_dims=128']),
        (
            {'decoder.layer_cfg.cross_attn_cfg.num_heads': 32},
            ['num_heads=32', '4 channels', 'takes 8', 'fewer heads or more embed_dims'],
        ),
        ({'encoder.layer_cfg.self_attn_cfg.num_heads': 5}, ['num_heads=5']),
        ({'decoder.layer_cfg.spatial_prior_cfg.floor': 0}, ['spatial_prior_cfg.floor=0']),
        ({'decoder.layer_cfg.spatial_prior_cfg.type': 'BoxPriors'}, ['BoxPriors']),
        ({'positional_encoding.num_feats': 32}, ['num_feats=32', 'embed_dims=128']),
        ({'dn_cfg.label_noise': 0.5}, ['label_noise']),
    ],
)
def test_smca_dino_that_does_not_fit(dino_config: Config, root: Path, changes: dict, named: list):
    cfg = on_data(dino_config, root)
    cfg.merge_from_dict({f'model.{key}': value for key, value in changes.items()})
    assert_names(refusal(ConfigError, cfg, 'train'), 'model', *named)


def test_softmax_head_scores_no_object_too(cfg: Config, tmp_path: Path):
    cfg.model.bbox_head.loss_cls = ConfigDict(type='CrossEntropyLoss', use_sigmoid=False)
    cfg.load_from = save_checkpoint(tmp_path / 'softmax.pth', rows=7)
    check_config(cfg, ('test',))
    cfg.load_from = save_checkpoint(tmp_path / 'sigmoid.pth', rows=6)
    assert_names(refusal(ConfigError, cfg, 'test'), 'scores 5 classes')


@pytest.mark.parametrize(
    'meta',
    [
        dict(dataset_meta=dict(classes=CLASSES[::-1])),
        dict(dataset_meta=dict(CLASSES=CLASSES[::-1])),
        dict(CLASSES=list(CLASSES[::-1])),
    ],
)
def test_checkpoint_of_other_classes(cfg: Config, tmp_path: Path, meta: dict):
    cfg.load_from = save_checkpoint(tmp_path / 'other.pth', meta=meta)
    message = refusal(ConfigError, cfg, 'test')
    assert_names(message, cfg.load_from, 'test_dataloader.dataset', "'ring' there and 'disc' here")


@pytest.mark.parametrize('classes', [('person',), CLASSES[::-1]])
def test_fine_tuning_on_other_classes(cfg: Config, tmp_path: Path, classes: tuple[str, ...]):
    cfg.load_from = save_checkpoint(tmp_path / 'other.pth', classes, rows=len(classes))
    check_config(cfg, ('train', 'val'))
    cfg.resume = True
    assert_names(refusal(ConfigError, cfg, 'train'), cfg.load_from, 'Use a checkpoint of a model')


def test_resuming_from_weights_alone(cfg: Config, tmp_path: Path):
    cfg.load_from = str(tmp_path / 'weights.pth')
    torch.save(dict(state_dict={HEAD_WEIGHT: torch.zeros(6, 8)}), cfg.load_from)
    check_config(cfg, ('train',))
    cfg.resume = True
    assert_names(refusal(ConfigError, cfg, 'train'), cfg.load_from, 'leave out --resume')


def test_resuming_from_what_a_run_leaves(cfg: Config, tmp_path: Path):
    """MMEngine writes the best checkpoint without optimizer, and both files in place."""
    cfg.resume = True
    cfg.load_from = save_checkpoint(tmp_path / 'epoch_1.pth')
    check_config(cfg, ('train',))
    Path(cfg.load_from).write_bytes(Path(cfg.load_from).read_bytes()[:-1])
    assert_names(refusal(ConfigError, cfg, 'train'), cfg.load_from, 'truncated', '--resume PATH')
    content = torch.load(save_checkpoint(tmp_path / 'best.pth'), weights_only=True)
    cfg.load_from = str(tmp_path / 'best_mAP_epoch_1.pth')
    del content['optimizer'], content['param_schedulers']
    torch.save(content, cfg.load_from)
    message = refusal(ConfigError, cfg, 'train')
    assert_names(message, cfg.load_from, 'lacks optimizer, param_schedulers', 'epoch_*.pth')
    cfg.load_from = ''
    assert_names(refusal(ConfigError, cfg, 'train'), 'last_checkpoint', 'is empty', '--resume PATH')


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


@pytest.mark.parametrize('url', ['https://host/x.pth', 's3://b/x.pth', 'torchvision://resnet50'])
def test_checkpoints_behind_urls_are_left_alone(cfg: Config, url: str):
    cfg.load_from = url
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


def test_config_of_a_checkpoint(tmp_path: Path):
    (tmp_path / 'a.py').write_text('model = dict(x=1)')
    args = Namespace(config=str(tmp_path / 'a.py'), checkpoint='c.pth', cfg_options={'model.x': 2})
    cfg = load_file(args)
    assert (cfg.model.x, cfg.load_from, cfg.resume) == (2, 'c.pth', False)
    args.config = str(tmp_path / 'gone.py')
    with pytest.raises(ConfigError, match='gone.py does not exist. Give the path'):
        load_file(args)


@pytest.mark.parametrize('content', [b'', b'junk', None])
def test_unreadable_image_is_named(root: Path, content: bytes | None):
    path = root / 'train/1.jpg'
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        LoadImage()(dict(img_path=str(path)))
    assert_names(str(caught.value), f'image {path} cannot be loaded', 'Restore the file')


def test_image_is_named_where_mmcv_does_not(tmp_path: Path, monkeypatch):
    def transform(self, results: dict) -> dict:  # MMCV 2.1 after a failed decoding
        return results | dict(img_shape=None.shape)

    monkeypatch.setattr(load_image.LoadImageFromFile, 'transform', transform)
    with pytest.raises(ImageError, match='image some.jpg cannot be loaded .AttributeError'):
        LoadImage()(dict(img_path='some.jpg'))


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_truncated_image_is_named(tmp_path: Path, suffix: str):
    path = tmp_path / f'cut{suffix}'
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    cv2.imwrite(str(path), image)
    assert LoadImage()(dict(img_path=str(path)))['img'].shape == (64, 64, 3)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ImageError, match=f'image {path} cannot be loaded'):
        LoadImage()(dict(img_path=str(path)))
