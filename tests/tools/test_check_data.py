"""``tools/check_data.py``: all faults at once, a page of annotated images, a corrected copy."""

import json
import runpy
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from runs import assert_names, coco, run, write_json
from utils import ROOT

from mmsmca.checks.renumber import write_corrected

TRAIN, VAL = (f'data/shapes128/annotations/instances_{split}.json' for split in ('train', 'val'))
PAGE = Path('work/annotations.png')


pytestmark = pytest.mark.usefixtures('folder')


def check(monkeypatch, *options: str) -> int:
    """The exit status of the tool."""
    monkeypatch.setattr(sys, 'argv', ['check_data.py', 'config.py', *options])
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(ROOT / 'tools/check_data.py'), run_name='__main__')
    return exit_info.value.code


def test_nothing_is_wrong(monkeypatch, capfd):
    """Of three images per split, each has a disc; a colour of its box is on the page."""
    assert check(monkeypatch) == 0
    out = capfd.readouterr().out
    assert f'{TRAIN}: 3 images; boxes: disc 3, square 0' in out
    assert 'Errors: 0, warnings: 3. Training would start.' in out
    for words in ('no box of square', 'the warm-up takes', 'falls for the last time'):
        assert words in out
    page = cv2.imread(str(PAGE))
    assert page is not None and len(np.unique(page.reshape(-1, 3), axis=0)) > 50


def spoil_train() -> None:
    """One fault of each kind that an annotation tool, a copy or a hand may make."""
    content = coco(num_images=9)
    images, boxes = content['images'], content['annotations']
    folder = Path('data/shapes128/train')
    whole = (folder / '1.jpg').read_bytes()
    for i in range(3, 9):
        (folder / f'{i}.jpg').write_bytes(whole)
    (folder / '0.jpg').unlink()
    (folder / '3.jpg').write_bytes(whole[:-100])
    (folder / '6.jpg').write_bytes(whole[:-100])
    (folder / '4.jpg').write_bytes(b'')
    (folder / '2.jpg').unlink()
    (folder / '2.jpg').symlink_to('2.jpg')
    (folder / '8.jpg').write_bytes(whole[:-2] + bytes(50) + whole[-2:])
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((96, 128, 3), np.uint8)).save(folder / '5.jpg', exif=exif)
    images[7]['file_name'] = '6.jpg'
    images.append(dict(id=20, file_name='8.jpg', width=128))
    boxes[0]['bbox'] = [8, 8, float('nan'), 48]
    boxes[1]['bbox'] = [8, 8, 64, 48, 0.9]
    boxes[2]['bbox'] = [72, 8, -64, 48]
    boxes[3]['bbox'] = [8, 8, 64, 0.5]
    boxes[4]['bbox'] = [500, 8, 64, 48]
    boxes[5]['id'] = boxes[6]['id']
    boxes[7]['category_id'] = 99
    boxes[8]['image_id'] = 77
    boxes.append(None)
    boxes.append(dict(boxes[1], id=29, bbox=[8, 8, 64, 48], iscrowd='0'))
    boxes.append(dict(id=30, image_id=6, category_id=1, bbox=[8, 8, 64, 48], iscrowd=0))
    write_json(Path(TRAIN), content)


def spoil_val() -> None:
    content = coco()
    content['categories'][0]['id'] = 0
    for i, box in enumerate(content['annotations']):
        box.update(id=i, category_id=0)
        del box['iscrowd']
    write_json(Path(VAL), content)


# What is said of the data that were spoilt, in this order.
FAULTS = [
    ('error', 'num_classes is 7, but train_dataloader.dataset has 6 classes'),
    ('error', 'num_classes is 7, but val_dataloader.dataset has 6 classes'),
    ('error', "images[9] has no 'height'"),
    ('error', 'annotations[9] is None', 'Remove it'),
    ('error', 'annotations[0].bbox is [8, 8, nan, 48] (id 1)', '2 entries have this fault'),
    ('error', "annotations[11] has no 'area'", '--renumber'),
    ('error', "annotations[10].iscrowd is '0'", 'must be 0 or 1'),
    ('error', "several entries in 'annotations' with the same id: 7", '--renumber'),
    ('warning', "several entries in 'images' with the same file_name: 6.jpg"),
    ('error', 'category ids 99'),
    ('warning', '1 of the 8 annotations are for images that it does not list (ids 9)'),
    ('warning', '3 with a box outside the image, less than a pixel wide', '(images 2, 3, 4)'),
    ('error', '1 of the 9 images', 'do not exist: data/shapes128/train/0.jpg'),
    ('warning', 'classes: no box of square, triangle, star, cross, ring', 'Roboflow'),
    ('error', VAL, "needs 'iscrowd'", '--renumber'),
    ('error', VAL, 'annotations with the ids 0', '--renumber'),
    ('error', 'image data/shapes128/train/2.jpg cannot be loaded', 'symbolic links'),
    ('error', 'image data/shapes128/train/3.jpg cannot be loaded', 'The same holds for:'),
    ('', 'data/shapes128/train/6.jpg'),
    ('error', 'image data/shapes128/train/4.jpg cannot be loaded'),
    ('warning', 'image data/shapes128/train/5.jpg is 128 pixels high and 96 wide', 'EXIF'),
    ('warning', 'image data/shapes128/train/8.jpg is probably damaged (Corrupt JPEG data: '),
]


def test_all_faults_are_listed_and_training_names_the_first(monkeypatch, capfd):
    spoil_train()
    spoil_val()
    with open('config.py', 'a') as file:
        file.write('model.update(bbox_head=dict(num_classes=7))\n')
    assert check(monkeypatch) == 1
    lines = capfd.readouterr().out.splitlines()
    for line, (level, *words) in zip(lines, FAULTS, strict=False):
        assert line.startswith(level or '    ')
        assert_names(line, *words)
    assert lines[len(FAULTS) :] == [
        f'{TRAIN}: 9 images; boxes: disc 6, square 0, triangle 0, star 0, cross 0, ring 0',
        f'{VAL}: 3 images; boxes: disc 3, square 0, triangle 0, star 0, cross 0, ring 0',
        f'{PAGE}: 4 annotated images to look at',
        'Errors: 15, warnings: 6. Training would not start.',
    ]
    assert run(monkeypatch, 'train', 'config.py') == 2
    assert lines[0].removeprefix('error: ') in capfd.readouterr().err.splitlines()[-1]


def test_a_corrected_copy_can_be_evaluated(monkeypatch, capfd):
    """Ids of images and categories may be 0; those of annotations may not."""
    spoil_val()
    before = Path(VAL).read_bytes()
    assert check(monkeypatch, '--renumber', 'fixed.json') == 1
    out = capfd.readouterr().out
    assert 'fixed.json: numbered the 3 annotations from 1' in out
    assert "fixed.json: added 'iscrowd': 0 (a single object) to 3 annotations" in out
    assert f'Use fixed.json in the config in the place of {VAL}.' in out
    fixed = json.loads(Path('fixed.json').read_text())
    expected = json.loads(before)
    for i, box in enumerate(expected['annotations'], 1):
        box.update(id=i, iscrowd=0)
    assert fixed == expected and Path(VAL).read_bytes() == before
    parts = 'val_evaluator', 'test_evaluator', 'val_dataloader.dataset', 'test_dataloader.dataset'
    options = [f'{part}.ann_file={Path("fixed.json").resolve()}' for part in parts]
    assert check(monkeypatch, '--cfg-options', *options, '--renumber', 'more.json') == 0
    assert 'No annotation file needs a corrected copy' in capfd.readouterr().out
    assert not Path('more.json').exists()


@pytest.mark.parametrize(
    ('options', 'words'),
    [
        (['--renumber', 'config.py'], 'config.py exists'),
        (['--renumber', 'no/fixed.json'], 'no is not a folder'),
        (['--cfg-options', 'modle.x=1'], 'did you mean model?'),
    ],
)
def test_nothing_is_checked(monkeypatch, capfd, options: list[str], words: str):
    assert check(monkeypatch, *options) == 2
    assert words in capfd.readouterr().err
    assert not PAGE.exists()


def test_string_ids_become_numbers(tmp_path: Path):
    content = coco()
    for image, box in zip(content['images'], content['annotations'], strict=True):
        image['id'] = box['image_id'] = f'i{image["id"]}'
    content['annotations'][1]['id'] = 'a'
    content['annotations'].append(dict(content['annotations'][0], image_id='gone'))
    del content['annotations'][0]['area']
    (tmp_path / 'a.json').write_text(json.dumps(content), encoding='utf-8-sig')
    done = write_corrected(str(tmp_path / 'a.json'), str(tmp_path / 'b.json'))
    assert [line.split()[0] for line in done] == ['removed', 'numbered', 'numbered', 'added']
    fixed = json.loads((tmp_path / 'b.json').read_text())
    assert [image['id'] for image in fixed['images']] == [1, 2, 3]
    assert [box['image_id'] for box in fixed['annotations']] == [1, 2, 3, 'gone']
    assert [box['id'] for box in fixed['annotations']] == [1, 2, 3, 4]
    assert fixed['annotations'][0]['area'] == 64 * 48
