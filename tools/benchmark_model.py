"""Time and memory of a training step and of inference of whole detectors, on random images.

Example: python tools/benchmark_model.py --json detectors.json --plot detectors.png

Each detector is timed in turns with the first, so that its ratio to it holds on a machine that
others use too. With --json a row is written as soon as it is measured, and a call that was cut off
goes on after the last.
"""

import logging
import statistics
import sys
from argparse import Namespace
from functools import partial
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import torch
from matplotlib.figure import Figure
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.analysis import get_model_complexity_info
from mmengine.config import Config, DictAction
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper

from mmsmca.analysis import benchmarks
from mmsmca.denormals import flush_denormals
from mmsmca.engine.cpu import BFloat16OptimWrapper
from mmsmca.errors import command
from mmsmca.visualization.panels import save_figure

# What is measured if no config is named; the ratios are to the first.
DETECTORS = {
    'mmdet::detr/detr_r50_8xb2-150e_coco.py': 'DETR',
    'mmdet::conditional_detr/conditional-detr_r50_8xb2-50e_coco.py': 'Conditional DETR',
    'mmdet::dab_detr/dab-detr_r50_8xb2-50e_coco.py': 'DAB-DETR',
    'mmdet::deformable_detr/deformable-detr_r50_16xb2-50e_coco.py': 'Deformable DETR',
    'mmdet::deformable_detr/deformable-detr-refine_r50_16xb2-50e_coco.py': 'Deformable, refined',
    'mmdet::deformable_detr/deformable-detr-refine-twostage_r50_16xb2-50e_coco.py': (
        'Deformable, two stages'
    ),
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py': 'DINO',
    'configs/smca/smca_r50_8xb2-50e_coco.py': 'SMCA',
    'configs/smca/smca_r50-dc5_8xb1-50e_coco.py': 'SMCA, DC5',
    'configs/smca/smca-multi-scale_r50_8xb1-50e_coco.py': 'SMCA, multi scale',
    'configs/smca/smca-multi-scale-conv_r50_8xb1-50e_coco.py': 'SMCA, convolutional',
    'configs/smca_dino/smca-dino_r50_8xb2-12e_coco.py': 'SMCA-DINO',
    'configs/smca_dino/smca-dino_r50_300-queries_8xb2-12e_coco.py': 'SMCA-DINO, 300 queries',
}
COLUMNS = {
    'detector': 'detector',
    'num_queries': 'queries',
    'parameters_m': 'parameters, M',
    'gflops': 'GFLOPs',
    'train_ms': 'training step, ms',
    'train_time': 'step vs first',
    'train_mib': 'training memory, MiB',
    'train_memory_vs_first': 'memory vs first',
    'test_ms': 'inference, ms',
    'test_time': 'inference vs first',
    'test_mib': 'inference memory, MiB',
}
MODES = {'train': 'training step', 'test': 'inference'}


def load_config(name: str, args: Namespace) -> Config:
    """Load a config; with the options of the command line and without pretrained weights."""
    cfg = get_config(name) if '::' in name else Config.fromfile(name)
    cfg.model.backbone.init_cfg = None
    if args.queries is not None:
        cfg.model.num_queries = args.queries
    cfg.merge_from_dict(args.cfg_options or {})
    if args.dtype != 'float32':
        # MMEngine's own runs on accelerators only.
        amp = 'AmpOptimWrapper' if args.device != 'cpu' else BFloat16OptimWrapper
        cfg.optim_wrapper.update(type=amp, dtype=args.dtype)
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
        self.num_queries = cfg.model.num_queries
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


def measure(name: str, first: dict | None, args: Namespace) -> dict:
    """Measure a config beside the first one.

    Args:
        name: Path of the config, or ``package::path``.
        first: Row of the first config; None if this is it.
        args: The command line.

    Returns:
        A row. Times are missing if there are no rounds, or memory does not suffice.
    """
    case = Case(name, args)
    row = dict(
        config=name, detector=DETECTORS.get(name, Path(name).stem), num_queries=case.num_queries
    )
    row.update(case.complexity())
    for mode in args.modes:
        row[f'{mode}_mib'] = benchmarks.in_fresh_process(peak_memory, name, mode, args)
        memory = row[f'{mode}_mib'], (first or row)[f'{mode}_mib']
        if None not in memory:
            row[f'{mode}_memory_vs_first'] = memory[0] / memory[1]
    if not args.rounds:
        return row
    reference = Case(args.configs[0], args) if first else case
    for mode in args.modes:
        if row[f'{mode}_mib'] is None:
            continue
        calls = {'this': getattr(case, mode)}
        if first and first[f'{mode}_mib'] is not None:
            calls['reference'] = getattr(reference, mode)
        times = benchmarks.interleaved_times(calls, args.rounds)
        row[f'{mode}_ms'] = 1e3 * statistics.median(times['this'])
        of_first = times.get('reference') if first else times['this']
        if of_first:
            row[f'{mode}_time_vs_first'] = benchmarks.paired_ratio(times['this'], of_first)
            row[f'{mode}_time_quartiles'] = benchmarks.paired_spread(times['this'], of_first)
    return row


def table(rows: list[dict]) -> str:
    """The rows in Markdown; beside a ratio of times its quartiles over the rounds."""
    shown = []
    for row in rows:
        ratios = {}
        for mode in MODES:
            if f'{mode}_time_vs_first' in row:
                low, high = row[f'{mode}_time_quartiles']
                ratio = row[f'{mode}_time_vs_first']
                ratios[f'{mode}_time'] = f'{ratio:.3g} ({low:.3g} to {high:.3g})'
        shown.append({**row, **ratios})
    return benchmarks.markdown_table(shown, COLUMNS)


def plot(rows: list[dict], path: Path) -> None:
    """Draw memory over time, a point a detector, of training and of inference.

    Args:
        rows: What was measured.
        path: Picture to write; one with the suffix .svg appears beside it.
    """
    figure = Figure(figsize=(9, 4), layout='constrained')
    for axes, (mode, title) in zip(figure.subplots(1, 2), MODES.items(), strict=True):
        for i, row in enumerate(rows):
            if row.get(f'{mode}_ms') is not None:
                # Colours repeat after ten; SMCA's points are full.
                ours = row['detector'].lower().startswith('smca')
                axes.plot(
                    row[f'{mode}_ms'] / 1e3,
                    row[f'{mode}_mib'] / 1024,
                    'osD^vPX*<>'[i % 10],
                    color=f'C{i % 10}',
                    fillstyle='full' if ours else 'none',
                    markersize=8,
                    linestyle='',
                    label=row['detector'],
                )
        axes.set(xlabel=f'{title}, seconds', ylabel='peak memory, GiB', title=title)
        axes.set(xlim=(0, None), ylim=(0, None))
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside right upper', fontsize=8)
    save_figure(figure, path)


def parse_args() -> Namespace:
    parser = benchmarks.argument_parser(__doc__.splitlines()[0], rounds=5)
    benchmarks.add_torch_arguments(parser)
    parser.add_argument(
        'configs', nargs='*', metavar='CONFIG', default=list(DETECTORS),
        help='path, or package::path, for example mmdet::detr/detr_r50_8xb2-150e_coco.py; '
        'default: SMCA in four forms beside seven detectors of MMDetection',
    )  # fmt: skip
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(800, 1333), metavar=('H', 'W'),
        help='size of the images, in pixels',
    )  # fmt: skip
    parser.add_argument('--batch', type=int, default=1, help='images; of several one is smaller')
    parser.add_argument(
        '--modes', nargs='+', choices=list(MODES), default=list(MODES), help='what is measured'
    )
    parser.add_argument('--queries', type=int, help="model.num_queries instead of the config's")
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='settings of all configs to change, for example model.num_queries=100',
    )  # fmt: skip
    parser.add_argument(
        '--plot', type=Path, help='picture of memory over time, .png; an .svg beside it'
    )
    args = parser.parse_args()
    for name in args.configs:
        if '::' not in name and not Path(name).is_file():
            parser.error(f'config {name} does not exist')
    return args


@command
def main() -> None:
    """Measure, print, write."""
    args = parse_args()
    flush_denormals()
    torch.set_num_threads(args.threads)
    settings = benchmarks.settings(args, 'configs', 'plot')
    settings['first'] = args.configs[0]
    kept = {row['config']: row for row in benchmarks.kept_rows(args.json, settings)}
    print(', '.join(f'{key} {value}' for key, value in settings.items()))
    rows: list[dict] = []
    for name in args.configs:
        if name in kept:
            print(f'{name}: measured before')
        else:
            print(f'{name}: being measured', flush=True)
            first = kept.get(args.configs[0])
            kept[name] = {**measure(name, first, args), **settings}
            if args.json:
                benchmarks.write_json(args.json, list(kept.values()))
        rows.append(kept[name])
    print(table(rows))
    if args.plot:
        plot(rows, args.plot)


if __name__ == '__main__':
    sys.exit(main())
