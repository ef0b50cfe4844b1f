"""Images that cannot be read are named; unusual ones are used as they are."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from runs import assert_names, coco, run, write_json

from mmsmca.checks import load_image
from mmsmca.checks.load_image import ImageError, LoadImage


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


@pytest.mark.parametrize('name', ['whole.jpg', 'gone.jpg', 'empty.jpg', 'cut.jpg', 'cut.png'])
def test_unreadable_image_is_named(tmp_path: Path, name: str):
    path = tmp_path / name
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    content = cv2.imencode(path.suffix, noise)[1].tobytes()
    if name != 'gone.jpg':
        path.write_bytes(dict(whole=content, empty=b'', cut=content[:-100])[path.stem])
    if name == 'whole.jpg':
        assert LoadImage()(dict(img_path=str(path)))['img'].shape == (64, 64, 3)
        return
    with pytest.raises(ImageError) as caught:
        LoadImage()(dict(img_path=str(path)))
    assert_names(str(caught.value), f'image {path} cannot be loaded', 'Restore the file')


def test_image_is_named_where_mmcv_does_not(tmp_path: Path, monkeypatch):
    def transform(self, results: dict) -> dict:  # MMCV 2.1 after a failed decoding
        return results | dict(img_shape=None.shape)

    monkeypatch.setattr(load_image.LoadImageFromFile, 'transform', transform)
    with pytest.raises(ImageError, match='image some.jpg cannot be loaded .AttributeError'):
        LoadImage()(dict(img_path='some.jpg'))
