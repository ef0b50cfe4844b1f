"""Parameters, multiply-adds and latency of a study's models, measured once and kept."""

import copy
import hashlib
import json
import logging
import statistics
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import get_test_pipeline_cfg, register_all_modules
from mmengine.config import Config
from mmengine.utils import import_modules_from_strings

from mmsmca.engine.flops import complexity
from mmsmca.engine.timing import environment, interleaved_times
from mmsmca.files import write_json

from .results import ReportError, Study

FILE = 'costs.json'


class Case:
    """A config's model, and a random image of its test size.

    Args:
        cfg: The config, which is changed.
        device: ``cpu`` or ``cuda``.

    Raises:
        ReportError: If the test pipeline has no size.
    """

    def __init__(self, cfg: Config, device: str) -> None:
        self.height, self.width = image_size(cfg)
        if 'backbone' in cfg.model:
            cfg.model.backbone.init_cfg = None  # Downloads nothing.
        self.model = MODELS.build(cfg.model).to(device).eval()
        # As when training starts; other weights may give denormal numbers, which take longer.
        self.model.init_weights()
        self.data = demo_mm_inputs(1, [(3, self.height, self.width)], num_items=[1])

    @torch.no_grad()
    def test(self) -> None:
        """Inference on one image, from pixels to boxes."""
        self.model.test_step(self.data)

    def complexity(self) -> dict[str, float]:
        """Parameters, and multiply-adds of a forward pass, as MMDetection's ``get_flops``."""
        parameters, flops = complexity(self.model, self.data)
        return dict(parameters=parameters, flops=flops)


def image_size(cfg: Config) -> tuple[int, int]:
    """Height and width that a config's test pipeline resizes landscape images to.

    Raises:
        ReportError: If it has no ``Resize`` with a ``scale``.
    """
    for transform in get_test_pipeline_cfg(cfg):
        if transform.type.endswith('Resize') and 'scale' in transform:
            width, height = transform.scale
            return height, width
    raise ReportError(
        'test_dataloader.dataset.pipeline has no Resize with a scale: without it the image size '
        'of the costs is unknown'
    )


def measure(study: Study, rounds: int = 9) -> dict:
    """Measure every experiment's model, as it is in the config of its first run.

    Args:
        study: Experiments without a config that can be read are left out.
        rounds: Timings of each model, in turns. Defaults to 9.

    Returns:
        How it was measured, and by experiment ``parameters``, ``flops`` (multiply-adds),
        ``latency_ms`` (median, one image) and ``image`` (height, width).

    Raises:
        ReportError: If a config has no test image size.
    """
    register_all_modules()
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    disabled = logging.root.manager.disable
    # The counter of multiply-adds and the initialisation have a line to say about every layer.
    logging.disable(logging.CRITICAL)
    try:
        cases, rows = {}, {}
        for name, cfg in _configs(study).items():
            if 'custom_imports' in cfg:
                import_modules_from_strings(**cfg.custom_imports)
            case = cases[name] = Case(copy.deepcopy(cfg), device)
            rows[name] = dict(
                model=_digest(cfg), image=[case.height, case.width], **case.complexity()
            )
        times = interleaved_times({n: case.test for n, case in cases.items()}, rounds)
    finally:
        logging.disable(disabled)
    for name, row in rows.items():
        row['latency_ms'] = 1e3 * statistics.median(times[name])
    return dict(environment=environment(device), rounds=rounds, experiments=rows)


def load(work_dir: Path, study: Study) -> dict:
    """What was measured before, less what no longer belongs to an experiment's model.

    Returns:
        As :func:`measure`; empty if nothing was measured.
    """
    path = work_dir / FILE
    if not path.exists():
        return {}
    try:
        costs = json.loads(path.read_text())
        costs['experiments'] = {
            name: costs['experiments'][name]
            for name, cfg in _configs(study).items()
            if costs['experiments'].get(name, {}).get('model') == _digest(cfg)
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        study.problems.append(f'{FILE}: cannot be read ({type(error).__name__}: {error})')
        return {}
    return costs


def load_or_measure(work_dir: Path, study: Study) -> dict:
    """What was measured before, if that is all of the study; else measure all of it and keep it.

    Latencies compare only if they were measured in turns: hence all or nothing.
    """
    costs = load(work_dir, study)
    if set(costs.get('experiments', {})) != set(_configs(study)):
        costs = measure(study)
        write_json(work_dir / FILE, costs)
    return costs


def _configs(study: Study) -> dict[str, Config]:
    """The config of every experiment's first run that has one."""
    configs = {}
    for experiment in study.experiments:
        found = [run.config for run in experiment.runs if run.config]
        if found:
            configs[experiment.name] = found[0]
    return configs


def _digest(cfg: Config) -> str:
    """Of the model and the size of its images."""
    description = json.dumps([cfg.model.to_dict(), image_size(cfg)], sort_keys=True, default=str)
    return hashlib.sha256(description.encode()).hexdigest()[:12]
