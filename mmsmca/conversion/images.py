"""Images of a folder, without annotations."""

import random
from collections.abc import Sequence
from pathlib import Path

from mmdet.datasets import BaseDetDataset
from mmengine.fileio import list_dir_or_file

from mmsmca.errors import DataError

SUFFIXES = ('.jpg', '.jpeg', '.jfif', '.png', '.bmp', '.webp', '.tif', '.tiff')


class UnlabelledImages(BaseDetDataset):
    """Images for a pipeline that loads annotations: they have none.

    Args:
        paths: Files.
        pipeline: Pipeline of a detector's config.
        metainfo: Meta information, such as its classes.
    """

    def __init__(self, paths: Sequence[str], pipeline: Sequence[dict], metainfo: dict) -> None:
        self.paths = paths
        super().__init__(pipeline=pipeline, metainfo=metainfo, test_mode=True)

    def load_data_list(self) -> list[dict]:
        """One entry per file, without instances."""
        return [dict(img_path=path, img_id=i, instances=[]) for i, path in enumerate(self.paths)]


def split_images(folder: str, num_fit: int, num_compare: int) -> tuple[list[str], list[str]]:
    """Choose the images to fit on and others to compare on, at random but always the same.

    Args:
        folder: Folder with images, also in subfolders.
        num_fit: Number of images to fit on.
        num_compare: Number of images to compare on.

    Returns:
        Paths for the fit and for the comparison.

    Raises:
        DataError: If the folder does not exist or has too few images.
    """
    if not Path(folder).is_dir():
        raise DataError(f'--images {folder} is not a folder. Give a folder with images.')
    paths = sorted(
        str(Path(folder) / name)
        for name in list_dir_or_file(folder, list_dir=False, recursive=True)
        if name.lower().endswith(SUFFIXES)
    )
    if len(paths) < num_fit + num_compare:
        raise DataError(
            f'--images {folder} has {len(paths)} images, but --fit-images and --compare-images ask '
            f'for {num_fit} and {num_compare} others. Give more images, or lower these numbers.'
        )
    random.Random(0).shuffle(paths)
    return paths[num_compare:], paths[:num_compare]
