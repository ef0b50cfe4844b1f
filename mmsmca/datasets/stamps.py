"""Photographed objects pasted onto photographs, a detection set in COCO's format.

Images are composed as in Dwibedi et al. ("Cut, Paste and Learn", ICCV 2017, arXiv:1708.01642):
objects are cut out by their alpha channel, rotated, mirrored, recoloured, and pasted onto crops of
photographs; later objects hide parts of earlier ones. Splits share neither objects nor halves of
photographs: backgrounds are left halves in the training split, and right halves, of different
photographs, in the other two.

By default the pictures come from four Debian packages, which need to be unpacked but not installed.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError
from rich.progress import track

from mmsmca.errors import DataError

from .generated_set import SPLITS, Drawing, GeneratedSet, crop, half

# Folders of the package tuxpaint-stamps-default.
FOLDERS_OF_CLASS = {
    'mammal': ('animals/mammals', 'animals/marsupials'),
    'bird': ('animals/birds',),
    'fish': ('animals/fish',),
    'insect': ('animals/insects',),
    'fruit': ('food/fruit',),
    'vegetable': ('food/vegetables',),
    'flower': ('plants/flowers',),
    'tool': ('household/tools',),
    'sign': ('town/roadsigns',),
    'vehicle': ('vehicles', 'military/vehicles'),
    'planet': ('space/planets', 'space/moon'),
    'instrument': ('hobbies/music',),
}
STAMPS_CLASSES = tuple(FOLDERS_OF_CLASS)
OBJECTS_PACKAGE = 'tuxpaint-stamps-default'
# Drawings among the photographs, a teddy bear and a plastic flower.
NOT_PHOTOGRAPHED = {'bee', 'hedgehog', 'sedan_police', 'edward_bear', 'chuvanna_plastic_poo'}
# Photographs that show no object of the classes.
PHOTOGRAPHS = {
    'mate-backgrounds/usr/share/backgrounds/mate/nature/{}.jpg': (
        'Aqua Blinds Dune GreenMeadow RainDrops Storm Wood'
    ),
    'plasma-workspace-wallpapers/usr/share/wallpapers/{}/contents/images/2560x1600.jpg': (
        'Autumn BytheWater ColdRipple ColorfulCups DarkestHour FallenLeaf Grey Kite OneStandsOut '
        'Path summer_1am'
    ),
    'lomiri-wallpapers-16.04/usr/share/backgrounds/{}.jpg': (
        'Bridge_by_Sander_Klootwijk aitzgorri_by_Aitzol_Berasategi '
        'greentock_by_Peter_Nerlich life_by_Aitzol_Berasategi picosdeeuropa_by_Aitzol_Berasategi '
        'sunset_by_Aitzol_Berasategi'
    ),
}
PACKAGES = (OBJECTS_PACKAGE, *(pattern.split('/')[0] for pattern in PHOTOGRAPHS))
SUFFIXES = ('.png', '.jpg', '.jpeg', '.webp')

# The longer side of an object before rotation, as a fraction of the image side.
EXTENT_RANGE = (0.08, 0.6)
MAX_ROTATION = 30.0  # degrees, either way
BRIGHTNESS_RANGE = (0.7, 1.3)
COLOUR_RANGE = (0.85, 1.15)  # per channel
# Share of an object that must stay visible behind later ones.
MIN_VISIBLE = 0.5
MIN_PIXELS = 16
PLACE_ATTEMPTS = 20
MIN_CROP = 0.4  # side of a background, as a fraction of the shorter side of a photograph's half
MAX_HEIGHT = 1024  # of a picture in memory, in pixels
# A quarter of the objects of each class is for validation, another quarter for tuning.
MIN_OBJECTS = 4
MIN_BACKGROUNDS = 2


@dataclass
class Pictures:
    """The pictures that a set is composed of.

    Attributes:
        classes: Names of the classes.
        objects: Objects by split and class, float32, (height, width, 4): RGB times alpha, and
            alpha, 0 to 1.
        backgrounds: Halves of photographs by split, uint8, (height, width, 3), RGB.
        digest: Hash that identifies these pictures.
    """

    classes: tuple[str, ...]
    objects: dict[str, list[list[np.ndarray]]]
    backgrounds: dict[str, list[np.ndarray]]
    digest: str


@dataclass
class Stamps(GeneratedSet):
    """Objects cut out of photographs, pasted onto other photographs.

    Attributes:
        objects: Folder with a subfolder per class, each with at least four pictures with an alpha
            channel. Defaults to None: the pictures of Debian's tuxpaint-stamps-default.
        backgrounds: Folder of at least two photographs. Defaults to None: Debian's wallpapers that
            show no object of the classes.
        cache: Folder with a subfolder for each of Debian's packages.
    """

    num_val: int = 400
    max_objects: int = 6
    objects: str | Path | None = None
    backgrounds: str | Path | None = None
    cache: str | Path = 'data/stamps_pictures'

    @cached_property
    def pictures(self) -> Pictures:
        """The pictures that the images are composed of.

        Raises:
            DataError: If there are too few pictures, or one cannot be read.
        """
        cache = Path(self.cache)
        wanted = PACKAGES[:1] * (self.objects is None) + PACKAGES[1:] * (self.backgrounds is None)
        missing = ' '.join(name for name in wanted if not (cache / name).is_dir())
        if missing:
            raise DataError(
                f'{cache} does not have the Debian packages {missing}. Unpack them with "mkdir -p '
                f'{cache}; cd {cache}; apt-get download {missing}; for file in *.deb; do dpkg -x '
                '$file ${file%%_*}; done", or pass folders of pictures with --objects and '
                '--backgrounds'
            )
        return _read_pictures(
            _packaged_objects(cache) if self.objects is None else _own_objects(Path(self.objects)),
            _packaged_photographs(cache)
            if self.backgrounds is None
            else _files(Path(self.backgrounds)),
        )

    @property
    def classes(self) -> Sequence[str]:
        """Names of the classes; with :attr:`objects`, the names of its subfolders."""
        return self.pictures.classes

    @property
    def manifest(self) -> dict[str, Any]:
        """What identifies this set, with the digest of its pictures."""
        return {**super().manifest, 'pictures': self.pictures.digest}

    def draw_background(self, rng: np.random.RandomState, split: str) -> np.ndarray:
        """A crop of a photograph's half, float32, (size, size, 3), 0 to 1."""
        halves = self.pictures.backgrounds[split]
        photograph = halves[rng.randint(len(halves))]
        side = round(min(photograph.shape[:2]) * rng.uniform(MIN_CROP, 1))
        square = crop(rng, photograph, side).astype(np.float32) / 255
        square = _resized(square, self.size, self.size)
        return np.minimum(square * np.float32(rng.uniform(*BRIGHTNESS_RANGE)), 1)

    def draw_objects(self, drawing: Drawing) -> None:
        """Paste objects, later ones in front of earlier ones."""
        rng = drawing.rng
        for _ in range(rng.randint(1, self.max_objects + 1)):
            label = rng.randint(len(self.classes))
            of_class = self.pictures.objects[drawing.split][label]
            stamp = _draw_object(rng, of_class[rng.randint(len(of_class))], self.size)
            _paste(drawing, stamp, label)


def _draw_object(rng: np.random.RandomState, stamp: np.ndarray, size: int) -> np.ndarray:
    """An object randomly resized, rotated, mirrored and recoloured, as in :class:`Pictures`."""
    low, high = EXTENT_RANGE
    scale = size * low * (high / low) ** rng.uniform() / max(stamp.shape[:2])
    height, width = (max(1, round(length * scale)) for length in stamp.shape[:2])
    stamp = _resized(stamp, height, width)
    if rng.randint(2):
        stamp = np.ascontiguousarray(stamp[:, ::-1])
    angle = math.radians(rng.uniform(-MAX_ROTATION, MAX_ROTATION))
    cos, sin = math.cos(angle), math.sin(angle)
    new_width = math.ceil(width * cos + height * abs(sin)) + 2
    new_height = math.ceil(height * cos + width * abs(sin)) + 2
    # Rotate about the centre, which moves to the new centre; pixel centres are integers.
    x, y = (width - 1) / 2, (height - 1) / 2
    turn = np.array(
        [
            [cos, sin, (new_width - 1) / 2 - cos * x - sin * y],
            [-sin, cos, (new_height - 1) / 2 + sin * x - cos * y],
        ]
    )
    stamp = cv2.warpAffine(stamp, turn, (new_width, new_height), flags=cv2.INTER_LINEAR)
    gain = rng.uniform(*BRIGHTNESS_RANGE) * rng.uniform(*COLOUR_RANGE, 3)
    stamp[..., :3] = np.minimum(stamp[..., :3] * gain, stamp[..., 3:])
    return stamp


def _paste(drawing: Drawing, stamp: np.ndarray, label: int) -> None:
    """Paste an object where enough of the others stays visible, if such a place is found."""
    size = len(drawing.pixels)
    solid = stamp[..., 3] >= 0.5
    if solid.sum() < MIN_PIXELS or max(solid.shape) > size:
        return
    for _ in range(PLACE_ATTEMPTS):
        y, x = (drawing.rng.randint(0, size - length + 1) for length in solid.shape)
        place = np.s_[y : y + solid.shape[0], x : x + solid.shape[1]]
        mask = np.zeros((size, size), bool)
        mask[place] = solid
        if drawing.leaves_visible(mask, MIN_VISIBLE):
            break
    else:
        return
    image = drawing.pixels
    image[place] = stamp[..., :3] + (1 - stamp[..., 3:]) * image[place]
    drawing.add(label, mask)


def _resized(picture: np.ndarray, height: int, width: int) -> np.ndarray:
    shrinks = height < picture.shape[0]
    how = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(picture, (width, height), interpolation=how)


def _read_pictures(objects: dict[str, list[Path]], photographs: list[Path]) -> Pictures:
    """Read the pictures and divide them between the splits.

    Pictures with neighbouring names often show the same thing, so names are kept in order.
    """
    for name, files in objects.items():
        if len(files) < MIN_OBJECTS:
            raise DataError(
                f'class {name!r} has {len(files)} object pictures; it needs at least '
                f'{MIN_OBJECTS}, so that no two splits share one'
            )
    if len(photographs) < MIN_BACKGROUNDS:
        raise DataError(
            f'{len(photographs)} background pictures found; at least {MIN_BACKGROUNDS} are needed'
        )
    digest = hashlib.sha256()
    of_split: dict[str, list[list[np.ndarray]]] = {split: [] for split in SPLITS}
    for name, files in track(objects.items(), description='objects'):
        digest.update(name.encode())
        files = sorted(files, key=lambda file: (file.stem.lower(), file.as_posix()))
        stamps = [_read(file, 'RGBA', digest).astype(np.float32) / 255 for file in files]
        for stamp in stamps:
            stamp[..., :3] *= stamp[..., 3:]
        quarter = len(stamps) // 4
        of_split['train'].append(stamps[: -2 * quarter])
        of_split['tune'].append(stamps[-2 * quarter : -quarter])
        of_split['val'].append(stamps[-quarter:])
    halves: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    for i, file in enumerate(track(sorted(photographs), description='backgrounds')):
        photograph = _read(file, 'RGB', digest)
        for split in ('train', 'val' if i % 2 else 'tune'):
            halves[split].append(half(photograph, split))
    return Pictures(tuple(objects), of_split, halves, digest.hexdigest()[:16])


def _read(file: Path, mode: str, digest: 'hashlib._Hash') -> np.ndarray:
    """A picture's pixels, uint8, (height, width, channels)."""
    digest.update(file.read_bytes())
    try:
        with Image.open(file) as picture:
            if picture.height > MAX_HEIGHT:
                width = round(picture.width * MAX_HEIGHT / picture.height)
                picture.draft(mode, (width, MAX_HEIGHT))
                return np.asarray(
                    picture.convert(mode).resize((width, MAX_HEIGHT), Image.Resampling.BOX)
                )
            return np.asarray(picture.convert(mode))
    except (UnidentifiedImageError, OSError) as error:
        raise DataError(f'{file} cannot be read as an image: {error}. Remove it') from error


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f'{folder} is not a folder')
    return [file for file in folder.rglob('*') if file.suffix.lower() in SUFFIXES]


def _own_objects(folder: Path) -> dict[str, list[Path]]:
    _files(folder)
    classes = {sub.name: _files(sub) for sub in sorted(folder.iterdir()) if sub.is_dir()}
    if not classes:
        raise DataError(f'{folder} has no subfolders: it needs one per class, named after it')
    return classes


def _packaged_objects(cache: Path) -> dict[str, list[Path]]:
    root = cache / OBJECTS_PACKAGE / 'usr/share/tuxpaint/stamps'
    return {
        name: [
            file
            for folder in folders
            for file in _files(root / folder)
            if file.suffix == '.png'
            and 'cartoon' not in file.parts
            and 'mirror' not in file.stem
            and file.stem not in NOT_PHOTOGRAPHED
        ]
        for name, folders in FOLDERS_OF_CLASS.items()
    }


def _packaged_photographs(cache: Path) -> list[Path]:
    files = [
        cache / pattern.format(name)
        for pattern, names in PHOTOGRAPHS.items()
        for name in names.split()
    ]
    return [file for file in files if file.is_file()]
