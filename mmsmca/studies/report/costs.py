"""Parameters, multiply-adds and latency of a study's models, measured once and stored."""

import copy
import logging
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import get_test_pipeline_cfg, register_all_modules
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.utils import import_modules_from_strings

from mmsmca.engine.flops import complexity
from mmsmca.engine.quiet import quiet
from mmsmca.engine.timing import environment, interleaved_times
from mmsmca.files import read_json, write_json
from mmsmca.studies.record import StudyError
from mmsmca.studies.study import digest

from .results import Report

FILE = 'costs.json'
ROUNDS = 9


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width that a config's test pipeline resizes landscape images to.

    Raises:
        StudyError: If the pipeline has no ``Resize`` with a ``scale``.
    """
    for transform in get_test_pipeline_cfg(cfg):
        if transform.type.endswith('Resize') and 'scale' in transform:
            width, height = transform.scale
            return height, width
    raise StudyError(
        'test_dataloader.dataset.pipeline has no Resize with a scale: without one, the image size '
        'for the costs is unknown'
    )


def measure(cfgs: dict[str, Config]) -> dict[str, Any]:
    """Measure models, each on a random image of its test size.

    Args:
        cfgs: Configs by experiment name.

    Returns:
        The measurement's environment and rounds, and by experiment ``parameters``, ``flops``
        (multiply-adds, like MMDetection's ``get_flops``), ``latency_ms`` (median for one image, all
        models in turns) and ``image`` (height, width).

    Raises:
        StudyError: If a config has no test image size.
    """
    register_all_modules()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    calls: dict[str, Callable[[], object]] = {}
    rows: dict[str, dict[str, Any]] = {}
    # The FLOP counter and the initialisation log a line for every layer.
    with quiet(logging.CRITICAL):
        for name, cfg in cfgs.items():
            image = image_size(cfg)
            model = _build(copy.deepcopy(cfg)).to(device)
            data = demo_mm_inputs(1, [(3, *image)], num_items=[1])
            parameters, flops = complexity(model, data)
            rows[name] = dict(
                model=_digest(cfg), image=list(image), parameters=parameters, flops=flops
            )
            calls[name] = torch.no_grad()(partial(model.test_step, data))
        times = interleaved_times(calls, ROUNDS)
    for name, row in rows.items():
        row['latency_ms'] = 1e3 * statistics.median(times[name])
    return dict(environment=environment(device), rounds=ROUNDS, experiments=rows)


def _build(cfg: Config) -> BaseModel:
    if 'custom_imports' in cfg:
        import_modules_from_strings(**cfg.custom_imports)
    if 'backbone' in cfg.model:
        cfg.model.backbone.init_cfg = None  # Avoids a download.
    model = MODELS.build(cfg.model).eval()
    # As at the start of training; other weights may give denormal numbers, which are slow.
    model.init_weights()
    return model


def add_costs(report: Report, work_dir: Path, measured: bool = False) -> None:
    """Add the costs of its models to a report.

    Args:
        report: The report.
        work_dir: Folder of the runs. Earlier measurements in its ``costs.json`` are used as long as
            the experiment's model has not changed.
        measured: Whether to measure if any costs are missing. All models are then measured again,
            as latencies are comparable only if measured in turns. Defaults to False.
    """
    cfgs = {run.experiment: run.cfg for run in reversed(report.runs) if run.cfg}
    path = work_dir / FILE
    costs = read_json(path) or {}
    before = costs.get('experiments', {})
    if path.exists() and not before:
        report.problems.append(f'{FILE}: cannot be read (it names no experiments)')
    known = {
        name: before[name]
        for name, cfg in cfgs.items()
        if name in before and before[name].get('model') == _digest(cfg)
    }
    report.costs = costs | dict(experiments=known) if known else {}
    if measured and set(known) != set(cfgs):
        report.costs = measure(cfgs)
        write_json(path, report.costs)


def _digest(cfg: Config) -> str:
    """Digest of the model and the size of its images."""
    return digest(Config(dict(model=cfg.model)), image=image_size(cfg))
