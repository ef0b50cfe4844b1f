"""What an export takes from a config: detector, size of the images, images to calibrate on."""

import copy
import textwrap

import numpy as np
from mmcv.transforms import LoadImageFromFile
from mmdet.datasets.transforms import LoadAnnotations, PackDetInputs, Resize
from mmdet.registry import DATASETS, MODELS, TRANSFORMS
from mmengine.config import Config, ConfigDict
from mmengine.runner import load_checkpoint
from torch import nn

from mmsmca.checkpoints import safe_globals
from mmsmca.checks.config import walk
from mmsmca.errors import DataError, one_line
from mmsmca.models import SMCADETR, SMCADINO

from .program import ExportError, check_supported

# Transforms of test pipelines that applications reproduce, such as tools/infer_onnx.py, with the
# values that their attributes must have. Other attributes do not change the image.
REPRODUCED: dict[type, dict[str, object]] = {
    LoadImageFromFile: dict(to_float32=False, color_type='color', imdecode_backend='cv2'),
    Resize: dict(keep_ratio=True, backend='cv2', interpolation='bilinear'),
    LoadAnnotations: {},
    PackDetInputs: {},
}


def load_model(cfg: Config) -> tuple[SMCADETR | SMCADINO, dict]:
    """Build a config's detector and load all its weights from ``cfg.load_from``.

    Args:
        cfg: Config with a model; ``cfg.load_from`` is the checkpoint, or None for random weights.

    Returns:
        The detector, for inference on the CPU, and metadata for users of the program: ``classes``,
        the class names, from the checkpoint or else from the config, and ``scale``, the size (long
        side, short side) in pixels that test images are resized to.

    Raises:
        ExportError: If the detector cannot be exported, or a weight is missing, unknown or of
            another shape.
    """
    scale = image_scale(cfg)
    if 'backbone' in cfg.model:  # its pretrained weights would be downloaded needlessly
        cfg.model.backbone.init_cfg = None
    model = MODELS.build(cfg.model)
    check_supported(model)
    if cfg.load_from:
        checkpoint = _load_weights(model, cfg.load_from)
    else:
        checkpoint = {}
        model.init_weights()
    dataset_meta = checkpoint.get('meta', {}).get('dataset_meta')
    if not isinstance(dataset_meta, dict):  # as in converted checkpoints
        *_, (_, dataset) = data_sets(cfg.test_dataloader, 'test_dataloader')
        dataset_meta = DATASETS.build(dict(dataset, pipeline=[], lazy_init=True)).metainfo
    return model.eval(), dict(classes=list(dataset_meta['classes']), scale=scale)


def _load_weights(model: nn.Module, path: str) -> dict:
    # Register again: onedl-mmengine removes its safe classes from PyTorch's list after each load.
    safe_globals.register()
    try:
        return load_checkpoint(model, path, map_location='cpu', strict=True)
    except RuntimeError as error:
        reason = next(line.strip() for line in str(error).splitlines()[1:] if line.strip())
        reason = textwrap.shorten(reason, 300, placeholder=' ...')
        raise ExportError(
            f'checkpoint {path} does not fit the config: {reason}. Specify the config that it was '
            'trained with.'
        ) from error


def data_sets(loader: ConfigDict | None, key: str) -> list[tuple[str, ConfigDict]]:
    """Keys and configs of all data sets of a data loader that have a pipeline, wrappers first."""
    return [
        (where, node)
        for where, node in walk(loader, key)
        if isinstance(node, dict) and 'pipeline' in node
    ]


def image_scale(cfg: Config) -> list[int]:
    """The size that a config's test images are resized to: long and short side, in pixels.

    Args:
        cfg: Config whose test pipelines consist of the transforms in ``REPRODUCED``: applications
            of the program reproduce no other.

    Raises:
        ExportError: If a pipeline has another transform or argument.
    """
    loader = cfg.get('test_dataloader')
    scales = {
        f'{key}.pipeline': _scale(dataset.pipeline, f'{key}.pipeline')
        for key, dataset in data_sets(loader, 'test_dataloader')
    }
    if not scales:
        raise ExportError('test_dataloader.dataset.pipeline is missing: it resizes test images.')
    first, *others = scales
    for other in others:
        if scales[other] != scales[first]:
            raise ExportError(
                f'{first} resizes to {scales[first]}, {other} to {scales[other]}: remove the data '
                'sets that the detector is not exported for.'
            )
    return scales[first]


def _scale(pipeline: list, key: str) -> list[int]:
    """The long and the short side that a pipeline, whose key is ``key``, resizes to."""
    steps = []
    for index, transform in enumerate(pipeline):
        try:
            step = TRANSFORMS.build(transform)
        except Exception as error:
            raise ExportError(f'{key}.{index}: {one_line(error)}. Correct it.') from error
        kind = type(step)
        if kind not in REPRODUCED:
            raise ExportError(
                f'{key}.{index}.type={kind.__name__} cannot be exported: use only '
                f'{", ".join(known.__name__ for known in REPRODUCED)}.'
            )
        for name, value in REPRODUCED[kind].items():
            if getattr(step, name) != value:
                raise ExportError(
                    f'{key}.{index}.{name}={getattr(step, name)!r} cannot be exported, only '
                    f'{value!r}: applications of the exported detector read and resize images so.'
                )
        steps.append(step)
    image_steps = [step for step in steps if isinstance(step, LoadImageFromFile | Resize)]
    if [type(step) for step in image_steps] != [LoadImageFromFile, Resize]:
        raise ExportError(f'{key} must have one LoadImageFromFile and then one Resize.')
    sides = image_steps[1].scale or ()
    if not sides or not all(isinstance(side, int) and side > 0 for side in sides):
        raise ExportError(f'{key}: the scale of its Resize must be two positive whole numbers.')
    return sorted(sides, reverse=True)


def calibration_images(cfg: Config, count: int) -> list[np.ndarray]:
    """Load training images, evenly spaced in the data set, with the test pipeline.

    Args:
        cfg: Config with training data.
        count: Number of images; all if there are fewer.

    Returns:
        Images, BGR, (H, W, 3), uint8.

    Raises:
        DataError: If the images cannot be loaded.
    """
    (*_, (_, source)), (*_, (_, test)) = (
        data_sets(cfg[loader], loader) for loader in ('train_dataloader', 'test_dataloader')
    )
    source = dict(copy.deepcopy(source), pipeline=test.pipeline)
    try:
        dataset = DATASETS.build(source)
        chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset)), dtype=int)
        images = [dataset[i]['inputs'].permute(1, 2, 0).numpy() for i in chosen]
    except Exception as error:  # any data set or transform may raise anything
        raise DataError(
            f'train_dataloader.dataset: no image to calibrate on ({one_line(error)}). Correct it, '
            'or export without --int8.'
        ) from error
    return images
