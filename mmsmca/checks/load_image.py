"""Images, loaded as MMCV loads them: any that cannot be, or is of another size, is named."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from mmcv.transforms import LoadImageFromFile
from mmdet.registry import TRANSFORMS

from mmsmca.errors import DataError, one_line


class ImageError(DataError):
    """An image that cannot be read while a run is under way."""

    def __str__(self) -> str:
        # A data-loading worker hands an error over with its whole trace as the message; the last
        # line is ours. In the main process there is no other line.
        last_line = super().__str__().strip().splitlines()[-1]
        return last_line.removeprefix(f'{__name__}.{type(self).__name__}: ')


class LoadImage(LoadImageFromFile):
    """MMCV's ``LoadImageFromFile``, naming the file whatever goes wrong.

    MMCV itself names it only in some cases: an empty file ends in OpenCV's assertion, and MMCV 2.1
    fails on every image it cannot decode with "'NoneType' object has no attribute 'shape'".
    Pipelines get it inside :func:`naming_images`.
    """

    def transform(self, results: dict) -> dict | None:
        """Load the image, as three channels of 8 bits.

        An image of another size than its annotations say is used as MMDetection uses it, with a
        warning: its boxes are probably elsewhere. Most often its EXIF orientation is the reason,
        which OpenCV applies and the annotations do not.

        Args:
            results: A sample with ``img_path``; ``height`` and ``width`` are the annotated size.

        Returns:
            The sample with ``img``, ``img_shape`` and ``ori_shape``.

        Raises:
            ImageError: If the image cannot be read or decoded.
        """
        path = results['img_path']
        try:
            loaded = super().transform(results)
        except Exception as error:
            raise ImageError(
                f'image {path} cannot be loaded ({one_line(error)}). Restore the file, or '
                'take the image out of the annotation file.'
            ) from error
        if loaded and 'height' in loaded:
            height, width = loaded['ori_shape']
            annotated = loaded['height'], loaded['width']
            if (height, width) != annotated:
                warnings.warn(
                    f'image {path} is {height} pixels high and {width} wide, its annotations are '
                    f'for {annotated[0]} and {annotated[1]}: boxes are likely misplaced. Correct '
                    'the annotation file, or store the image in that size; if they are for the '
                    "image without its EXIF orientation, set color_type='color_ignore_orientation' "
                    'of LoadImageFromFile in the pipelines.',
                    stacklevel=2,
                )
        return loaded


@contextmanager
def naming_images() -> Iterator[None]:
    """Let pipelines that are built inside load images by :class:`LoadImage`.

    MMDetection's registry is searched before MMCV's, so that configs keep their pipelines.
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
