"""The steps of a conversion, from two configs and a folder of images to a checkpoint."""

import copy
import io
import json
import logging
import tempfile
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.hub import get_config
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

import mmsmca  # noqa: F401  registers the models
from mmsmca.checkpoints import files as checkpoint_files
from mmsmca.checks.load_image import naming_images
from mmsmca.engine.quiet import quiet
from mmsmca.errors import ConfigError, DataError, one_line

from .comparison import compare
from .from_dino import (
    carry_over,
    check_models,
    current_names,
    fit_outputs,
    fit_priors,
    same_encoder,
)
from .images import UnlabelledImages, split_images
from .imitation import imitate


def convert(
    config: str,
    checkpoint: str,
    out: str,
    to: str,
    images: str,
    annotations: str | None = None,
    fit_images: int = 200,
    compare_images: int = 100,
    iterations: int = 2000,
    batch_size: int | None = None,
    amp: bool = False,
) -> None:
    """Convert a trained DINO into an SMCA-DINO and print how well it fits.

    Args:
        config: Config of the DINO, a file or ``mmdet::...``.
        checkpoint: Its weights.
        out: Checkpoint to write; must not exist.
        to: Config of the SMCA-DINO.
        images: Folder with images like those that the DINO was trained on.
        annotations: Their annotations in COCO's format, to compare the AP. Defaults to None.
        fit_images: Number of images for the fits. Defaults to 200.
        compare_images: Number of other images on which the detectors are compared. Defaults to 100.
        iterations: Length of the imitation, if the encoders differ. Defaults to 2000.
        batch_size: Images at a time. Defaults to None: the DINO config's.
        amp: Whether to imitate in mixed precision. Defaults to False.

    Raises:
        UserError: If a file cannot be read or written, there are too few images, or the detectors
            do not fit together.
    """
    checkpoint_files.check_destination(out)
    source, target = read_config(config), read_config(to)
    fit_paths, compare_paths = split_images(images, fit_images, compare_images)
    init_default_scope('mmdet')
    dino, smca_dino = build(source), build(target)
    check_models(dino, smca_dino)
    tensors = current_names(checkpoint_files.read_tensors(checkpoint), dino)
    load(tensors, dino, config)
    fresh = carry_over(tensors, smca_dino)
    print(f'{len(smca_dino.state_dict()) - len(fresh)} tensors are those of DINO')
    batch_size = batch_size or source.train_dataloader.batch_size
    pipeline = source.test_dataloader.dataset.pipeline
    metainfo = source.test_dataloader.dataset.get('metainfo') or {}
    dino, smca_dino = (detector.to(get_device()).eval() for detector in (dino, smca_dino))

    def batches(paths: Sequence[str], what: str) -> Iterable[dict]:
        return track(_loader(UnlabelledImages(paths, pipeline, metainfo), batch_size), what)

    with naming_images():
        if not same_encoder(smca_dino):
            dataset = UnlabelledImages(
                fit_paths, source.train_dataloader.dataset.pipeline, metainfo
            )
            imitate(dino, smca_dino, dataset, batch_size, iterations, amp, Path(out))
        fitted = fit_paths[:fit_images]
        for i, row in enumerate(fit_priors(dino, smca_dino, batches(fitted, 'priors'))):
            shares = ', '.join(f'{name} {share:.1%}' for name, share in row.items())
            print(f'layer {i}: not explained by its Gaussians: {shares}')
        for i, row in enumerate(fit_outputs(dino, smca_dino, batches(fitted, 'outputs'))):
            before, after = row['before'], row['after']
            print(f'layer {i}: not explained of its output: {before:.1%}, fitted {after:.1%}')
        checkpoint_files.write(smca_dino.state_dict(), out)
        row = compare(dino, smca_dino, batches(compare_paths, 'comparison'))
        print(
            f'{out}: of {row["detections"]} detections of DINO on {len(compare_paths)} other '
            f'images, SMCA-DINO has {row["found"]:.0%}; medians: IoU {row["iou"]:.2f}, difference '
            f'of the scores {row["score"]:.3f}'
        )
        if annotations:
            for name, detector in (('DINO', dino), ('SMCA-DINO', smca_dino)):
                ap = box_ap(detector, source, images, annotations, compare_paths, batch_size)
                print(f'{name}: box AP {ap:.3f} on these images')


def read_config(path: str) -> Config:
    """Read a config, a file or one of an installed package (``mmdet::...``).

    Raises:
        ConfigError: If it cannot be read.
    """
    try:
        return get_config(path) if '::' in path else Config.fromfile(path)
    except Exception as error:  # a config is Python code
        raise ConfigError(f'config {path} cannot be read ({one_line(error)})') from error


def build(cfg: Config) -> BaseModel:
    """Build a detector with random weights."""
    model = copy.deepcopy(cfg.model)  # MMDetection adds keys to it.
    if 'backbone' in model:
        # Its weights come from the checkpoint.
        model.backbone.init_cfg = None
    detector = MODELS.build(model)
    with quiet(logging.INFO):  # A line per tensor.
        detector.init_weights()
    return detector


def load(tensors: dict, dino: BaseModel, config: str) -> None:
    """Load all weights of a DINO.

    Raises:
        ConfigError: If the checkpoint does not fit the config.
    """
    try:
        missing, unexpected = dino.load_state_dict(tensors, strict=False)
    except RuntimeError as error:  # shapes
        raise ConfigError(f'the checkpoint does not fit {config} ({one_line(error)})') from error
    if missing or unexpected:
        raise ConfigError(
            f'the checkpoint does not fit {config}: it lacks {len(missing)} of its tensors and has '
            f'{len(unexpected)} others ({", ".join([*missing, *unexpected][:3])}, ...)'
        )


@torch.no_grad()
def box_ap(
    detector: BaseModel,
    cfg: Config,
    folder: str,
    annotations: str,
    paths: Sequence[str],
    batch_size: int,
) -> float:
    """Box AP on some of the annotated images of a folder.

    Raises:
        DataError: If the annotations cannot be read, or are of other images.
    """
    try:
        content = json.loads(Path(annotations).read_text())
        names = {str(Path(path).relative_to(folder)) for path in paths}
        content['images'] = [image for image in content['images'] if image['file_name'] in names]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'--annotations {annotations} cannot be read ({one_line(error)})'
        ) from error
    if not content['images']:
        raise DataError(f'--annotations {annotations} has none of the images of --images {folder}')
    ids = {image['id'] for image in content['images']}
    content['annotations'] = [row for row in content['annotations'] if row['image_id'] in ids]
    with tempfile.TemporaryDirectory() as temporary, quiet(logging.INFO):
        file = str(Path(temporary) / 'annotations.json')
        Path(file).write_text(json.dumps(content))
        with redirect_stdout(io.StringIO()):
            dataset = DATASETS.build(
                dict(
                    cfg.test_dataloader.dataset,
                    data_root='',
                    ann_file=file,
                    data_prefix=dict(img=folder),
                )
            )
            metric = METRICS.build(dict(type='CocoMetric', ann_file=file, metric='bbox'))
        metric.dataset_meta = dataset.metainfo
        for batch in track(_loader(dataset, batch_size), 'AP'):
            outputs = [sample.to_dict() for sample in detector.test_step(batch)]
            metric.process(batch, outputs)
        with redirect_stdout(io.StringIO()):
            return metric.evaluate(len(dataset))['coco/bbox_mAP']


def _loader(dataset: Dataset, batch_size: int) -> DataLoader:
    return Runner.build_dataloader(
        dict(
            dataset=dataset,
            batch_size=batch_size,
            num_workers=0,
            sampler=dict(type='DefaultSampler', shuffle=False),
            collate_fn=dict(type='pseudo_collate'),
        )
    )
