"""The steps of a conversion, from two configs and a folder of images to a checkpoint."""

import copy
import io
import json
import logging
import shutil
import tempfile
import zlib
from argparse import Namespace
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from pathlib import Path

import torch
from mmdet.registry import DATASETS, METRICS, MODELS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.model import BaseModel
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

import mmsmca  # noqa: F401  registers the models
from mmsmca.checkpoints import files as checkpoint_files
from mmsmca.checks.config import load_config
from mmsmca.checks.load_image import naming_images
from mmsmca.checks.preflight import check_config
from mmsmca.engine.quiet import quiet
from mmsmca.errors import ConfigError, DataError, UserError, one_line, shorten
from mmsmca.models.detectors.smca_detr import SMCADETR

from . import from_deformable_detr, from_dino
from .comparison import compare
from .from_dino import current_names, has_proposals, run_dino, same_encoder
from .images import UnlabelledImages, check_images, split_images
from .imitation import imitate
from .proposals import fit_queries


def convert(
    config: str,
    checkpoint: str,
    out: str,
    to: str,
    images: str,
    annotations: str | None = None,
    fit_images: int = 200,
    iterations: int = 2000,
    batch_size: int | None = None,
    amp: bool = False,
) -> None:
    """Convert a trained DINO into an SMCA-DINO, or a Deformable DETR into an SMCA.

    Prints how well it fits.

    Args:
        config: Config of the DINO or Deformable DETR, a file or ``mmdet::...``.
        checkpoint: Its weights.
        out: Checkpoint to write; must not exist.
        to: Config of the SMCA-DINO, or of the SMCA, likewise.
        images: Folder with images like those that the DINO was trained on. On a fifth of them,
            but at most 100, the detectors are compared; the others are for imitation and fits.
        annotations: Their annotations in COCO's format, to compare the AP. Defaults to None.
        fit_images: Number of images for the fits, if there are as many. Defaults to 200.
        iterations: Length of the imitation, if the encoders differ. Defaults to 2000.
        batch_size: Images at a time. Defaults to None: the DINO config's.
        amp: Whether to imitate in mixed precision. Defaults to False.

    Raises:
        UserError: If a file cannot be read or written, there are no images, or the detectors
            do not fit together.
    """
    for option, number in (
        ('--fit-images', fit_images),
        ('--iterations', iterations),
        ('--batch-size', batch_size),
    ):
        if number is not None and number < 1:
            raise ConfigError(f'{option} {number}: at least 1 is needed')
    checkpoint_files.check_destination(out)
    init_default_scope('mmdet')
    source, target = read(config), read(to)
    to_train, to_test = pipeline(source, 'train', config), pipeline(source, 'test', config)
    batch_size = batch_size or source.train_dataloader.get('batch_size', 1)
    fit_paths, compare_paths = split_images(images)
    with naming_images(), tempfile.TemporaryDirectory() as folder:
        fitted = fit_paths[:fit_images]
        check_images(UnlabelledImages([*fitted, *compare_paths], to_test))
        labelled = None
        if annotations:
            labelled = on_annotated(source, images, annotations, compare_paths, folder)
        dino, smca_dino = build(source), build(target)
        kind = from_deformable_detr if isinstance(smca_dino, SMCADETR) else from_dino
        kind.check_models(dino, smca_dino)
        tensors = current_names(checkpoint_files.read_tensors(checkpoint), dino)
        load(tensors, dino, config)
        fresh = kind.carry_over(tensors, smca_dino)
        dino, smca_dino = (detector.to(get_device()).eval() for detector in (dino, smca_dino))
        for steps in (to_train, to_test):
            try_out(dino, smca_dino, UnlabelledImages(fitted[:1], steps))
        print(f'{len(smca_dino.state_dict()) - len(fresh)} tensors are those of {kind.NAMES[0]}')

        def batches(paths: Sequence[str], what: str) -> Iterable[dict]:
            return track(_loader(UnlabelledImages(paths, to_test), batch_size), what)

        file = Path(checkpoint).resolve()
        own = [source.model, target.model, to_train, images, iterations, batch_size, amp]
        own += [file, file.stat().st_mtime_ns]
        # A command continues what the same one began, and nothing else.
        work_dir = Path(f'{Path(out).with_suffix("")}_{zlib.crc32(repr(own).encode()):08x}')
        if not same_encoder(smca_dino):
            dataset = UnlabelledImages(fit_paths, to_train)
            imitate(dino, smca_dino, dataset, batch_size, iterations, amp, work_dir)
        if has_proposals(dino):
            content, position = fit_queries(dino, smca_dino, batches(fitted, 'queries'))
            print(f'queries: not explained: contents {content:.1%}, positions {position:.1%}')
        for i, row in enumerate(kind.fit_priors(dino, smca_dino, batches(fitted, 'priors'))):
            shares = ', '.join(f'{name} {share:.1%}' for name, share in row.items())
            print(f'layer {i}: not explained by its Gaussians: {shares}')
        for i, row in enumerate(kind.fit_outputs(dino, smca_dino, batches(fitted, 'outputs'))):
            before, after = row['before'], row['after']
            print(f'layer {i}: not explained of its output: {before:.1%}, fitted {after:.1%}')
        checkpoint_files.write(smca_dino.state_dict(), out)
        shutil.rmtree(work_dir, ignore_errors=True)
        row = compare(dino, smca_dino, batches(compare_paths, 'comparison'))
        print(
            f'{out}: of {row["detections"]} detections of {kind.NAMES[0]} on {len(compare_paths)} '
            f'other images, {kind.NAMES[1]} has {row["found"]}'
            + (
                f'; medians: IoU {row["iou"]:.2f}, difference of the scores {row["score"]:.3f}'
                if row['found']
                else ''
            )
        )
        if labelled:
            for name, detector in zip(kind.NAMES, (dino, smca_dino), strict=True):
                ap = box_ap(detector, labelled, batch_size)
                print(f'{name}: box AP {ap:.3f} on these images')


def read(path: str) -> Config:
    """Read and check a config.

    Raises:
        ConfigError: If it cannot be read, or its model cannot be built.
    """
    cfg = load_config(Namespace(config=path, cfg_options=None))
    cfg.load_from = None  # It may name what is to be written.
    try:
        check_config(cfg, phases=())
    except ConfigError as error:
        raise ConfigError(f'config {path}: {error}') from error
    return cfg


def pipeline(cfg: Config, phase: str, path: str) -> list[dict]:
    """Transforms of a config's images, in training or in a test.

    Raises:
        ConfigError: If it has none.
    """
    try:
        return get_test_pipeline_cfg(Config(dict(test_dataloader=cfg[f'{phase}_dataloader'])))
    except (AttributeError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f'config {path} has no {phase}_dataloader.dataset.pipeline, which images go through'
        ) from error


def build(cfg: Config) -> BaseModel:
    """Build a detector with random weights."""
    model = copy.deepcopy(cfg.model)  # MMDetection adds keys to it.
    # Its weights come from the checkpoint.
    model.get('backbone', {}).update(init_cfg=None)
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
        lists = dict(lacks=missing, has=unexpected)
        differences = [f'{verb} {shorten(names, 2)}' for verb, names in lists.items() if names]
        raise ConfigError(f'the checkpoint does not fit {config}: it {" and ".join(differences)}')


@torch.no_grad()
def try_out(dino: BaseModel, smca_dino: BaseModel, images: Dataset) -> None:
    """Run both detectors on images, so that what fails does so before the long work.

    Raises:
        ConfigError: If it does.
    """
    try:
        for batch in _loader(images, 1):
            maps, samples, _ = run_dino(dino, batch)
            smca_dino.forward_transformer(maps, samples)
    except UserError:
        raise
    except Exception as error:
        raise ConfigError(
            f'a detector fails on an image without annotations ({one_line(error)}): correct the '
            'configs'
        ) from error


def on_annotated(
    cfg: Config, images: str, annotations: str, paths: Sequence[str], folder: str
) -> Config:
    """A detector's config to evaluate on some annotated images.

    Args:
        cfg: Config of the detector.
        images: Folder with the images.
        annotations: Their annotations in COCO's format.
        paths: The images to evaluate on.
        folder: Where to write their annotations.

    Raises:
        UserError: If the annotations cannot be used, or are of other images.
    """
    try:
        content = json.loads(Path(annotations).read_text())
        names = {Path(path).relative_to(images).as_posix() for path in paths}
        content['images'] = [image for image in content['images'] if image['file_name'] in names]
        ids = {image['id'] for image in content['images']}
        content['annotations'] = [row for row in content['annotations'] if row['image_id'] in ids]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f'--annotations {annotations} cannot be read ({one_line(error)})'
        ) from error
    if not ids:
        raise DataError(f'--annotations {annotations} has none of the images of --images {images}')
    file = Path(folder) / 'annotations.json'
    file.write_text(json.dumps(content))
    cfg = copy.deepcopy(cfg)
    dataset = dict(data_root='', ann_file=str(file), data_prefix=dict(img=images))
    cfg.merge_from_dict({'test_dataloader.dataset': dataset})
    cfg.test_evaluator = dict(type='FastestCocoMetric', ann_file=str(file), metric='bbox')
    try:
        check_config(cfg, phases=('test',))
    except UserError as error:
        raise type(error)(str(error).replace(str(file), annotations)) from error
    return cfg


def box_ap(detector: BaseModel, cfg: Config, batch_size: int) -> float:
    """Box AP on the test set of a config."""
    with quiet(logging.INFO), redirect_stdout(io.StringIO()):
        dataset = DATASETS.build(cfg.test_dataloader.dataset)
        metric = METRICS.build(cfg.test_evaluator)
    metric.dataset_meta = dataset.metainfo
    for batch in track(_loader(dataset, batch_size), 'AP'):
        with torch.no_grad():
            outputs = [sample.to_dict() for sample in detector.test_step(batch)]
        metric.process(batch, outputs)
    with quiet(logging.INFO), redirect_stdout(io.StringIO()):
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
