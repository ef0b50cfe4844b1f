"""Measure time and memory of training and inference of whole detectors, on random images.

Example: python tools/analysis_tools/benchmark_model.py --json detectors.json --plot detectors.png

Each detector is timed in turns with the first, so that their ratio holds on a shared machine, too.
With --json, a row is written as soon as it is measured, and the same command continues after the
last row.
"""

import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import benchmarks
import torch
from cases import MODES, Detector, Setting
from matplotlib.figure import Figure
from measure import measure
from mmengine.config import DictAction

from mmsmca.denormals import flush_denormals
from mmsmca.engine.flops import complexity
from mmsmca.errors import command
from mmsmca.files import write_json
from mmsmca.visualization.panels import save_figure

# Detectors that are measured by default; ratios are to the first.
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
    'train_operations': 'operations of a step',
    'test_ms': 'inference, ms',
    'test_time': 'inference vs first',
    'test_mib': 'inference memory, MiB',
    'test_operations': 'of inference',
}


def cost(detector: Detector, setting: Setting) -> dict[str, float]:
    """Queries, parameters in millions, and 10^9 multiply-adds of a forward pass on the batch.

    Counted on the CPU, whatever the device, as no counter knows the GPU operators.
    """
    case = detector.build(replace(setting, device='cpu', dtype='float32'))
    parameters, multiply_adds = complexity(case.model.eval(), case.data)
    queries = case.model.num_queries
    return dict(num_queries=queries, parameters_m=parameters / 1e6, gflops=multiply_adds / 1e9)


def table(rows: list[dict]) -> str:
    """Format the rows in Markdown; ratios of times include their quartiles over the rounds."""
    shown = []
    for row in rows:
        ratios = {}
        for mode in MODES:
            if f'{mode}_time_vs_first' in row:
                low, high = row[f'{mode}_quartiles_vs_first']
                ratio = row[f'{mode}_time_vs_first']
                ratios[f'{mode}_time'] = f'{ratio:.3g} ({low:.3g} to {high:.3g})'
        shown.append({**row, **ratios})
    return benchmarks.markdown_table(shown, COLUMNS)


def plot(rows: list[dict], path: Path) -> None:
    """Plot memory over time in training and in inference, one point per detector.

    Args:
        rows: Measured rows.
        path: Picture to write; a copy with the suffix .svg is written beside it.
    """
    figure = Figure(figsize=(9, 4), layout='constrained')
    for axes, (mode, title) in zip(figure.subplots(1, 2), MODES.items(), strict=True):
        for i, row in enumerate(rows):
            if row.get(f'{mode}_ms') is not None:
                # Colours repeat after ten; SMCA's markers are filled.
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
    parser.add_argument('--batch', type=int, default=1, help='images; of several, one is smaller')
    parser.add_argument(
        '--modes', nargs='+', choices=list(MODES), default=list(MODES), help='what to measure'
    )
    parser.add_argument('--queries', type=int, help="replaces the config's model.num_queries")
    parser.add_argument(
        '--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE',
        help='settings to change in all configs, for example model.num_queries=100',
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
    setting = Setting(args.batch, args.dtype, args.device, args.threads)
    print(', '.join(f'{key} {value}' for key, value in settings.items()))
    rows: list[dict] = []
    for name in args.configs:
        if name in kept:
            print(f'{name}: measured before')
        else:
            print(f'{name}: being measured', flush=True)
            # The first detector and this one; only one of them if they are the same.
            subjects = {
                key: Detector(config, tuple(args.shape), args.queries, args.cfg_options or {})
                for key, config in (('first', args.configs[0]), ('this', name))
            }
            if not rows:
                del subjects['this']
            first = {'first': rows[0]} if rows else {}
            row = measure(
                subjects, setting, args.rounds, args.memory_limit, args.modes, ['first'], first
            )[-1]
            title = DETECTORS.get(name, Path(name).stem)
            row.update(cost(subjects[row.pop('name')], setting))
            kept[name] = {**row, 'config': name, 'detector': title, **settings}
            if args.json:
                write_json(args.json, list(kept.values()))
        rows.append(kept[name])
    print(table(rows))
    if args.plot:
        plot(rows, args.plot)


if __name__ == '__main__':
    sys.exit(main())
