"""Images of a folder, without annotations."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from mmdet.datasets import BaseDetDataset
from mmengine.fileio import list_dir_or_file
from rich.progress import track

from mmsmca.errors import DataError, one_line

# Largest number of images to compare on.
COMPARED = 100
SUFFIXES = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.webp', '.tif', '.tiff')


class UnlabelledImages(BaseDetDataset):
    """Images for a pipeline that loads annotations: they have none.

    Args:
        paths: Files.
        pipeline: Pipeline of a detector's config.
    """

    def __init__(self, paths: Sequence[str], pipeline: Sequence[dict]) -> None:
        self.paths = paths
        super().__init__(pipeline=pipeline, test_mode=True, serialize_data=False)

    def load_data_list(self) -> list[dict]:
        """One entry per file, without instances."""
        return [dict(img_path=path, img_id=i, instances=[]) for i, path in enumerate(self.paths)]


def split_images(folder: str) -> tuple[list[str], list[str]]:
    """Choose images to compare on, a fifth but at most ``COMPARED``; always the same.

    An image that is added or removed leaves most others where they are.

    Args:
        folder: Folder with images, also in subfolders.

    Returns:
        Paths for the fit and for the comparison, in random order.

    Raises:
        DataError: If the folder does not exist or has less than two images.
    """
    if not Path(folder).is_dir():
        raise DataError(f'--images {folder} is not a folder. Give a folder with images.')
    names = [
        name
        for name in list_dir_or_file(folder, list_dir=False, recursive=True)
        if name.lower().endswith(SUFFIXES)
    ]
    if len(names) < 2:
        raise DataError(
            f'--images {folder} has less than two images ({", ".join(SUFFIXES)}), one to fit and '
            'one to compare on. Give some dozens.'
        )
    names.sort(key=lambda name: hashlib.sha256(name.encode()).digest())
    paths = [str(Path(folder) / name) for name in names]
    compared = min(COMPARED, max(1, len(paths) // 5))
    return paths[compared:], paths[:compared]


def check_images(images: UnlabelledImages) -> None:
    """Refuse images that do not pass their pipeline.

    Raises:
        DataError: If one does not; the message names it.
    """
    for i in track(range(len(images)), 'images'):
        try:
            images[i]
        except DataError:
            raise
        except Exception as error:
            raise DataError(
                f'image {images.paths[i]} does not pass test_dataloader.dataset.pipeline '
                f'({one_line(error)}). Remove the image, or correct the pipeline.'
            ) from error
