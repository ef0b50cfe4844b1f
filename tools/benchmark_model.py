"""Time and memory of a training step and of inference of whole detectors, on random images.

Example: python tools/benchmark_model.py configs/smca/smca_r50_8xb2-50e_coco.py \
    mmdet::detr/detr_r50_8xb2-150e_coco.py --queries 300
"""

import argparse
import logging
import statistics
from argparse import Namespace
from functools import partial
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config, DictAction
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper

from mmsmca.analysis import benchmarks
from mmsmca.denormals import flush_denormals

COLUMNS = {
    'config': 'config',
    'parameters_m': 'parameters, M',
    'gflops': 'GFLOPs',
    'train_ms': 'training step, ms',
    'train_mib': 'training memory, MiB',
    'test_ms': 'inference, ms',
    'test_mib': 'inference memory, MiB',
    'train_time_vs_first': 'step vs first',
    'train_memory_vs_first': 'memory vs first',
}


def load_config(name: str, args: Namespace) -> Config:
    """Load a config; with the options of the command line and without pretrained weights."""
    cfg = get_config(name) if '::' in name else Config.fromfile(name)
    cfg.model.backbone.init_cfg = None
    if args.queries is not None:
        cfg.model.num_queries = args.queries
    cfg.merge_from_dict(args.cfg_options or {})
    if args.dtype != 'float32':
        cfg.optim_wrapper.update(type='AmpOptimWrapper', dtype=args.dtype)
    return cfg


class Case:
    """A detector with its config's optimiser and random data.

    Args:
        name: Path of the config, or ``package::path``.
        args: The command line.
    """

    def __init__(self, name: str, args: Namespace) -> None:
        torch.manual_seed(0)
        torch.set_num_threads(args.threads)
        register_all_modules()
        # The optimiser and the counter of multiply-adds have a line to say about every layer.
        logging.disable(logging.WARNING)
        cfg = load_config(name, args)
        self.model = MODELS.build(cfg.model).to(args.device)
        # As when training starts; other weights may give denormal gradients, which take longer.
        self.model.init_weights()
        self.optim_wrapper = build_optim_wrapper(self.model, cfg.optim_wrapper)
        self.autocast = partial(
            torch.autocast,
            args.device,
            getattr(torch, args.dtype),
            enabled=args.dtype != 'float32',
        )
        height, width = args.shape
        shapes = [(3, height, width)] * args.batch
        if args.batch > 1:
            # As in most batches, an image is smaller than others: attention gets a padding mask.
            shapes[-1] = (3, height, width * 9 // 10)
        self.data = demo_mm_inputs(
            args.batch,
            shapes,
            num_items=[7] * args.batch,
            num_classes=cfg.model.bbox_head.num_classes,
        )

    def train(self) -> None:
        """One training step: forward, backward, gradient clipping, optimiser."""
        self.model.train()
        self.model.train_step(self.data, self.optim_wrapper)

    @torch.no_grad()
    def test(self) -> None:
        """Inference, from images to boxes."""
        self.model.eval()
        with self.autocast():
            self.model.test_step(self.data)

    def complexity(self) -> dict[str, float]:
        """Parameters in millions, and 10^9 multiply-adds of a forward pass on the batch."""
        self.model.eval()
        data = self.model.data_preprocessor(self.data)
        forward = self.model.forward
        self.model.forward = partial(forward, data_samples=data['data_samples'])
        found = get_model_complexity_info(
            self.model, inputs=data['inputs'], show_table=False, show_arch=False
        )
        self.model.forward = forward
        return dict(parameters_m=found['params'] / 1e6, gflops=found['flops'] / 1e9)


def peak_memory(name: str, mode: str, args: Namespace) -> float | None:
    """Peak memory of a detector, parameters and optimiser included, in MiB."""

    def run() -> None:
        case = Case(name, args)
        for _ in range(2):  # The optimiser's state is there from the second step on.
            getattr(case, mode)()

    return benchmarks.peak_memory(run, args.device, args.memory_limit)


def measure(args: Namespace) -> list[dict]:
    """Measure every config.

    Args:
        args: The command line.

    Returns:
        One row a config, with its ratios to the first.
    """
    rows = []
    for name in args.configs:
        row = dict(config=name)
        for mode in ('train', 'test'):
            row[f'{mode}_mib'] = benchmarks.in_fresh_process(peak_memory, name, mode, args)
        if None not in (row['train_mib'], rows[0]['train_mib'] if rows else row['train_mib']):
            row['train_memory_vs_first'] = row['train_mib'] / (rows or [row])[0]['train_mib']
        rows.append(row)
    if not args.rounds:
        return rows
    cases = [Case(name, args) for name in args.configs]
    for row, case in zip(rows, cases, strict=True):
        row.update(case.complexity())
    for mode in ('train', 'test'):
        times = benchmarks.interleaved_times(
            {i: getattr(case, mode) for i, case in enumerate(cases)}, args.rounds
        )
        for i, row in enumerate(rows):
            row[f'{mode}_ms'] = 1e3 * statistics.median(times[i])
            row[f'{mode}_time_vs_first'] = benchmarks.paired_ratio(times[i], times[0])
    return rows


def parse_args() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        'configs', nargs='+', metavar='CONFIG',
        help='path, or package::path, for example mmdet::detr/detr_r50_8xb2-150e_coco.py',
    )  # fmt: skip
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(800, 1333), metavar=('H', 'W'),
        help='size of the images, in pixels',
    )  # fmt: skip
    parser.add_argument('--batch', type=int, default=1, help='images; of several one is smaller')
    parser.add_argument('--queries', type=int, help="model.num_queries instead of the config's")
    parser.add_argument(
        '--dtype', choices=('float32', 'bfloat16', 'float16'), default='float32',
        help='other than float32: by autocast',
    )  # fmt: skip
    parser.add_argument('--device', choices=('cpu', 'cuda'), default='cpu')
    parser.add_argument('--threads', type=int, default=2, help='threads on a CPU')
    parser.add_argument('--rounds', type=int, default=5, help='timings of each; 0: memory only')
    parser.add_argument(
        '--memory-limit', type=float, default=12, metavar='GIB',
        help='on a CPU, memory of what needs more is given as a dash',
    )  # fmt: skip
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='settings of all configs to change, for example model.num_queries=100',
    )  # fmt: skip
    parser.add_argument('--json', help='file for the rows')
    args = parser.parse_args()
    for name in args.configs:
        if '::' not in name and not Path(name).is_file():
            parser.error(f'config {name} does not exist')
    return args


def main() -> None:
    """Measure, print, write."""
    args = parse_args()
    flush_denormals()
    torch.set_num_threads(args.threads)
    not_settings = ('configs', 'json', 'threads')
    settings = {key: value for key, value in vars(args).items() if key not in not_settings}
    environment = benchmarks.environment(args.device)
    rows = [{**row, **settings, **environment} for row in measure(args)]
    print(f'{benchmarks.setting(environment)}\n\n{benchmarks.markdown_table(rows, COLUMNS)}')
    if args.json:
        benchmarks.write_json(args.json, rows)


if __name__ == '__main__':
    main()
