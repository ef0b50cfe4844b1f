"""Time and memory of a training step and of inference of whole detectors, on random images."""

import logging
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace

import torch
from mmdet.registry import HOOKS, MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper

from mmsmca.engine.cpu import BFloat16OptimWrapper
from mmsmca.engine.flops import complexity

from . import benchmarks

MODES = {'train': 'training step', 'test': 'inference'}
RATIOS = ('memory_vs_first', 'time_vs_first', 'time_quartiles')


@dataclass(frozen=True)
class Setting:
    """What detectors are measured on.

    Attributes:
        shape: Height and width of the images, in pixels.
        batch: Images; of several the last is smaller.
        queries: ``model.num_queries`` instead of the config's, or None.
        cfg_options: Settings of the config to change, by dotted key.
        dtype: Name of the precision; another than float32 is by autocast.
        device: ``cpu`` or ``cuda``.
        threads: Threads on a CPU.
    """

    shape: tuple[int, int] = (800, 1333)
    batch: int = 1
    queries: int | None = None
    cfg_options: dict = field(default_factory=dict)
    dtype: str = 'float32'
    device: str = 'cpu'
    threads: int = 2


def load_config(name: str, setting: Setting) -> Config:
    """Load a config; with the options of a setting and without pretrained weights.

    Args:
        name: Path of the config, or ``package::path``.
        setting: What it is measured on.
    """
    cfg = get_config(name) if '::' in name else Config.fromfile(name)
    cfg.model.backbone.init_cfg = None
    if setting.queries is not None:
        cfg.model.num_queries = setting.queries
    cfg.merge_from_dict(setting.cfg_options)
    if setting.dtype != 'float32':
        # MMEngine's own runs on accelerators only.
        amp = 'AmpOptimWrapper' if setting.device != 'cpu' else BFloat16OptimWrapper
        cfg.optim_wrapper.update(type=amp, dtype=setting.dtype)
    return cfg


class Case:
    """A detector with its config's optimiser and random data.

    Args:
        name: Path of the config, or ``package::path``.
        setting: What it is measured on.
    """

    def __init__(self, name: str, setting: Setting) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(setting.threads)
        register_all_modules()
        # The optimiser and the counter of multiply-adds have a line to say about every layer.
        logging.disable(logging.WARNING)
        cfg = load_config(name, setting)
        self.num_queries = cfg.model.num_queries
        self.model = MODELS.build(cfg.model).to(setting.device)
        # As when training starts; other weights may give denormal gradients, which take longer.
        self.model.init_weights()
        for hook in cfg.get('custom_hooks', []):
            # One that changes the model does so here.
            HOOKS.build(hook).before_run(SimpleNamespace(model=self.model))
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.autocast = partial(
            torch.autocast,
            setting.device,
            getattr(torch, setting.dtype),
            enabled=setting.dtype != 'float32',
        )
        height, width = setting.shape
        shapes = [(3, height, width)] * setting.batch
        if setting.batch > 1:
            # As in most batches, an image is smaller than others: attention gets a padding mask.
            shapes[-1] = (3, height, width * 9 // 10)
        self.data = demo_mm_inputs(
            setting.batch,
            shapes,
            num_items=[7] * setting.batch,
            num_classes=cfg.model.bbox_head.num_classes,
        )

    def train(self) -> dict[str, torch.Tensor]:
        """One training step: forward, backward, gradient clipping, optimiser.

        Returns:
            The losses, as MMEngine logs them; their sum is ``loss``.
        """
        self.model.train()
        return self.model.train_step(self.data, self.optim_wrapper)

    @torch.no_grad()
    def test(self) -> None:
        """Inference, from images to boxes."""
        self.model.eval()
        with self.autocast():
            self.model.test_step(self.data)

    def complexity(self) -> dict[str, float]:
        """Parameters in millions, and 10^9 multiply-adds of a forward pass on the batch."""
        parameters, multiply_adds = complexity(self.model.eval(), self.data)
        return dict(parameters_m=parameters / 1e6, gflops=multiply_adds / 1e9)


def peak_memory(name: str, mode: str, setting: Setting, limit_gib: float) -> float | None:
    """Peak memory of a detector, parameters and optimiser included, in MiB; None if too much."""

    def run() -> None:
        case = Case(name, setting)
        for _ in range(2):  # The optimiser's state is there from the second step on.
            getattr(case, mode)()

    return benchmarks.peak_memory(run, setting.device, limit_gib)


def measure(
    name: str,
    first: dict | None,
    setting: Setting,
    rounds: int,
    memory_limit: float,
    modes: Sequence[str] = tuple(MODES),
) -> dict:
    """Measure a config beside the first one.

    Args:
        name: Path of the config, or ``package::path``.
        first: Row of the first config; None if this is it.
        setting: What it is measured on.
        rounds: Timings of each; at 0, memory only.
        memory_limit: Most memory that a process may have on a CPU, in GiB.
        modes: Which of :data:`MODES`. Defaults to all.

    Returns:
        A row. Times are missing if there are no rounds, or memory does not suffice.
    """
    # Multiply-adds do not depend on the device, but custom operators of a GPU are not counted.
    on_cpu = Case(name, replace(setting, device='cpu', dtype='float32'))
    row = dict(config=name, num_queries=on_cpu.num_queries, outcome=benchmarks.MEASURED)
    row.update(on_cpu.complexity())
    del on_cpu
    for mode in modes:
        row[f'{mode}_mib'] = benchmarks.in_clean_memory(
            peak_memory, name, mode, setting, memory_limit, device=setting.device
        )
        memory = row[f'{mode}_mib'], (first or row)[f'{mode}_mib']
        if memory[0] is None:
            row['outcome'] = benchmarks.NO_MEMORY
        if memory[0] is not None and memory[1]:
            row[f'{mode}_memory_vs_first'] = memory[0] / memory[1]
    if not rounds:
        return row
    case = Case(name, setting)
    reference = Case(first['config'], setting) if first else case
    for mode in modes:
        if row[f'{mode}_mib'] is None:
            continue
        calls = {'this': getattr(case, mode)}
        if first and first[f'{mode}_mib'] is not None:
            calls['reference'] = getattr(reference, mode)
        times = benchmarks.interleaved_times(calls, rounds)
        row[f'{mode}_ms'] = 1e3 * statistics.median(times['this'])
        of_first = times.get('reference') if first else times['this']
        if of_first:
            row[f'{mode}_time_vs_first'] = benchmarks.paired_ratio(times['this'], of_first)
            row[f'{mode}_time_quartiles'] = benchmarks.paired_spread(times['this'], of_first)
    return row


def measure_alone(name: str, setting: Setting, rounds: int, memory_limit: float) -> list[dict]:
    """Measure a config beside no other; arguments are those of :func:`measure`.

    Returns:
        One row, without ratios, whose ``outcome`` may be a failure.
    """
    row: dict = dict(config=name, dtype=setting.dtype)
    with benchmarks.outcome_in(row):
        found = measure(name, None, setting, rounds, memory_limit)
        ratios = [f'{mode}_{what}' for mode in MODES for what in RATIOS]
        row.update({key: value for key, value in found.items() if key not in ratios})
    return [row]
