"""The set of pasted photographs: no object and no half of a photograph is in two splits."""

import json
import runpy
import subprocess
import sys

import cv2
import numpy as np
import pytest
from utils import ROOT

from mmsmca.datasets import stamps
from mmsmca.datasets.generated_set import SPLITS
from mmsmca.datasets.stamps import Stamps
from mmsmca.errors import DataError

SMALL = {'num_train': 8, 'num_val': 4, 'size': 64, 'seed': 3}
# Blue tells an object, green a half of a photograph; both are exact after division by 16.
PER_CLASS = 8
PHOTOGRAPHS = 4


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """Folders of objects, discs with an alpha channel, and of backgrounds of two colours each."""
    root = tmp_path_factory.mktemp('pictures')
    for number, name in enumerate(('bolt', 'nut')):
        (root / 'objects' / name).mkdir(parents=True)
        for i in range(PER_CLASS):
            disc = np.zeros((40, 60, 4), np.uint8)
            blue = 16 * (number * PER_CLASS + i)
            cv2.ellipse(disc, (30, 20), (29, 19), 0, 0, 360, (blue, 0, 255, 255), -1)
            cv2.imwrite(str(root / 'objects' / name / f'{i}.png'), disc)
    (root / 'backgrounds').mkdir()
    for i in range(PHOTOGRAPHS):
        photograph = np.zeros((80, 200, 3), np.uint8)
        photograph[:, :100, 1], photograph[:, 100:, 1] = 32 * i, 32 * i + 16
        cv2.imwrite(str(root / 'backgrounds' / f'{i}.png'), photograph)
    return dict(objects=root / 'objects', backgrounds=root / 'backgrounds')


def contents(folder):
    files = (path for path in folder.rglob('*') if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_same_parameters_give_the_same_bytes(pictures, tmp_path):
    assert Stamps(**pictures, **SMALL).write(tmp_path / 'a')
    assert Stamps(**pictures, **SMALL).write(tmp_path / 'b')
    assert contents(tmp_path / 'a') == contents(tmp_path / 'b')
    assert not Stamps(**pictures, **SMALL).write(tmp_path / 'a')
    content = json.loads((tmp_path / 'a/annotations/instances_tune.json').read_text())
    assert [category['name'] for category in content['categories']] == ['bolt', 'nut']
    assert len(content['images']) == 4
    with pytest.raises(DataError, match='seed 3 .asked for: 4'):
        Stamps(**pictures, **{**SMALL, 'seed': 4}).write(tmp_path / 'a')


def test_splits_share_no_object_and_no_half_of_a_photograph(pictures):
    read_pictures = Stamps(**pictures).pictures
    blues, greens = [], []
    for split in SPLITS:
        of_split = read_pictures.objects[split]
        blues += [round(x[20, 30, 2] * 255) for of_class in of_split for x in of_class]
        greens += [int(half[0, 0, 1]) for half in read_pictures.backgrounds[split]]
        assert all(of_split)
    assert sorted(blues) == list(range(0, 256, 16))
    assert sorted(greens) == list(range(0, 128, 16))
    # Later in the order of names: neighbours stay together.
    assert [len(of_class) for of_class in read_pictures.objects['train']] == [4, 4]


@pytest.mark.parametrize('split', SPLITS)
def test_images_show_what_is_of_their_split(pictures, monkeypatch, split):
    for name in ('BRIGHTNESS_RANGE', 'COLOUR_RANGE'):
        monkeypatch.setattr(stamps, name, (1.0, 1.0))
    drawn = Stamps(size=64, max_objects=3, **pictures)
    blues = {
        16 * (label * PER_CLASS + i)
        for label in range(2)
        for i in dict(train=range(4), tune=range(4, 6), val=range(6, 8))[split]
    }
    greens = {int(half[0, 0, 1]) for half in drawn.pictures.backgrounds[split]}
    seen, counts = set(), set()
    for index in range(60):
        image, objects = drawn.draw(split, index)
        counts.add(len(objects))
        assert set(image[..., 1][image[..., 0] == 0]) <= greens
        for shape in objects:
            assert shape.mask.sum() >= 0.5 * shape.full_area
            # Without its soft edges, the image's and those of other objects.
            inside = cv2.erode(shape.mask.astype(np.uint8), np.ones((5, 5)), borderValue=0)
            colours = set(image[inside.astype(bool)][:, 2])
            assert colours <= blues
            seen |= colours
        assert np.sum([shape.mask for shape in objects], axis=0).max(initial=0) <= 1
    assert seen == blues
    assert counts == {0, 1, 2, 3}


def test_later_objects_hide_parts_of_earlier_ones(pictures):
    drawn = Stamps(size=64, **pictures)
    hidden = [
        shape.mask.sum() < shape.full_area
        for index in range(60)
        for shape in drawn.draw('train', index)[1]
    ]
    assert 0.05 < np.mean(hidden) < 0.6


def test_packages_are_asked_for(tmp_path):
    with pytest.raises(DataError, match='apt-get download tuxpaint-stamps-default mate-.*dpkg -x'):
        Stamps(cache=tmp_path / 'cache', **SMALL).write(tmp_path / 'set')
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (lambda root: (root / 'objects/nut/0.png').write_text('no picture'), 'nut/0.png cannot be'),
        (lambda root: [(root / f'objects/nut/{i}.png').unlink() for i in range(5)], "'nut' has 3"),
        (
            lambda root: [p.unlink() for p in (root / 'backgrounds').iterdir()],
            '0 background pictures found',
        ),
        (lambda root: (root / 'backgrounds').rename(root / 'other'), 'backgrounds is not a folder'),
        (lambda root: (root / 'objects').rename(root / 'backgrounds/o'), 'objects is not a folder'),
    ],
)
def test_bad_pictures_are_named_before_anything_is_written(pictures, tmp_path, change, words):
    for kind, folder in pictures.items():
        subprocess.run(['cp', '-r', folder, tmp_path / kind], check=True)
    change(tmp_path)
    with pytest.raises(DataError, match=words):
        Stamps(objects=tmp_path / 'objects', backgrounds=tmp_path / 'backgrounds', **SMALL).write(
            tmp_path / 'set'
        )
    assert not (tmp_path / 'set').exists()


def test_command_takes_folders_of_pictures(pictures, tmp_path, monkeypatch, capsys):
    folder = tmp_path / 'set'
    words = [f'--{kind}={path}' for kind, path in pictures.items()]
    words += '--train 2 --val 1 --tune 3 --size 64 --max-objects 2'.split()
    monkeypatch.setattr(sys, 'argv', ['make_stamps.py', str(folder), *words])
    assert runpy.run_path(str(ROOT / 'tools/make_stamps.py'))['main']() == 0
    assert capsys.readouterr().out.endswith('set: written\n')
    assert [len(list((folder / split).iterdir())) for split in SPLITS] == [2, 1, 3]
