"""Image loading as in MMCV, but naming images that cannot be loaded or have another size."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS

from mmsmca.errors import DataError, one_line


class ImageError(DataError):
    """An image that cannot be read while a run is under way."""

    def __str__(self) -> str:
        # The message of an error in a data loading worker is its whole traceback, of which the
        # last line is ours. In the main process that is the only line.
        last_line = super().__str__().strip().splitlines()[-1]
        return last_line.removeprefix(f'{__name__}.{type(self).__name__}: ')


class LoadImage(LoadImageFromFile):
    """MMCV's ``LoadImageFromFile``, naming the file in every error.

    MMCV itself names it only in some cases: an empty file fails an assertion in OpenCV, and MMCV
    2.1 fails on every image it cannot decode with "'NoneType' object has no attribute 'shape'".
    Pipelines that are built inside :func:`naming_images` use this class.
    """

    def transform(self, results: dict) -> dict | None:
        """Load the image as three 8-bit channels.

        An image whose size differs from its annotations is used, as in MMDetection, but with a
        warning: its boxes are probably misplaced. The usual reason is its EXIF orientation, which
        OpenCV applies and the annotations do not.
        """
        path = results['img_path']
        try:
            loaded = super().transform(results)
        except Exception as error:
            raise ImageError(
                f'image {path} cannot be loaded ({one_line(error)}). Restore the file, or leave '
                'the image out.'
            ) from error
        if loaded and 'height' in loaded:
            height, width = loaded['ori_shape']
            annotated = loaded['height'], loaded['width']
            if (height, width) != annotated:
                warnings.warn(
                    f'image {path} is {height} pixels high and {width} wide, but its annotations '
                    f'are for {annotated[0]} and {annotated[1]}: boxes are probably misplaced. '
                    'Correct the annotation file, or store the image at that size; if the '
                    'annotations ignore its EXIF orientation, set '
                    "color_type='color_ignore_orientation' for LoadImageFromFile in the pipelines.",
                    stacklevel=2,
                )
        return loaded


@contextmanager
def naming_images() -> Iterator[None]:
    """Make pipelines that are built inside this context load images with :class:`LoadImage`.

    MMDetection's registry is searched before MMCV's, so configs need no change.
    """
    modules = TRANSFORMS.module_dict
    before = modules.get('LoadImageFromFile')
    modules['LoadImageFromFile'] = LoadImage
    try:
        yield
    finally:
        if before is None:
            del modules['LoadImageFromFile']
        else:
            modules['LoadImageFromFile'] = before
