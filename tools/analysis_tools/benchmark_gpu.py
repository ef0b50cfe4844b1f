"""What SMCA and SMCA-DINO cost on a GPU: attention, precision, detectors, compiling, training.

Example: python tools/benchmark_gpu.py --out work_dirs/gpu

Writes gpu.json and gpu.md. A part is written as soon as it is measured; the same command goes on
after the last, and measures again what failed. --small --device cpu tries all of it out.
"""

import argparse
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import torch

from mmsmca.analysis import (
    amp_training,
    attention_cases,
    attention_cost,
    attention_error,
    benchmarks,
    compile_cost,
    detector_cost,
)
from mmsmca.analysis.attention_cases import Setting as Attention
from mmsmca.analysis.detector_cost import Setting as Images
from mmsmca.analysis.parts import Part, Section, measure_parts, page
from mmsmca.denormals import flush_denormals
from mmsmca.errors import command
from mmsmca.files import written_whole

ROOT = Path(__file__).resolve().parents[1]
# On a CPU, in GiB.
MEMORY_LIMIT = 12


@dataclass(frozen=True)
class Sizes:
    """What is measured, and how often.

    Attributes:
        attentions: Co-attentions, by name.
        detectors: Configs of detectors, by name; below ``configs/`` or ``package::path``.
        compiled: Names of those that are compiled.
        trained: Names of those that are trained in mixed precision.
        images: What detectors are measured on.
        training_images: What they are trained on.
        dtypes: Precisions.
        steps: Steps of that training.
        rounds: Timings of each.
    """

    attentions: dict[str, Attention]
    detectors: dict[str, str]
    compiled: tuple[str, ...]
    trained: tuple[str, ...]
    images: Images
    training_images: Images
    dtypes: tuple[str, ...]
    steps: int
    rounds: int


FULL = Sizes(
    # Images of 800 x 1333 pixels: single scale, DC5, four levels.
    attentions={
        'SMCA 25x42': Attention(((25, 42),), queries=300),
        'SMCA 50x84': Attention(((50, 84),), queries=300),
        'SMCA-DINO': Attention(((100, 167), (50, 84), (25, 42), (13, 21)), queries=900),
    },
    detectors={
        'DETR': 'mmdet::detr/detr_r50_8xb2-150e_coco.py',
        'DINO': 'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py',
        'SMCA': 'smca/smca_r50_8xb2-50e_coco.py',
        'SMCA, multi scale': 'smca/smca-multi-scale_r50_8xb1-50e_coco.py',
        'SMCA-DINO': 'smca_dino/smca-dino_r50_8xb2-12e_coco.py',
    },
    compiled=('SMCA', 'SMCA, multi scale', 'SMCA-DINO'),
    trained=('SMCA', 'SMCA-DINO'),
    images=Images(batch=2),
    training_images=Images(shape=(480, 640), batch=2),
    dtypes=benchmarks.DTYPES,
    steps=50,
    rounds=10,
)
SMALL = Sizes(
    attentions={
        'SMCA 3x4': Attention(((3, 4),), queries=5, heads=2, channels=16),
        'SMCA-DINO': Attention(((4, 6), (2, 3)), queries=5, heads=2, channels=16),
    },
    detectors={
        'SMCA': 'shapes/smca_r18_shapes.py',
        'SMCA-DINO': 'head_to_head/smca-dino_r18_head-to-head_shapes.py',
    },
    compiled=('SMCA',),
    trained=('SMCA', 'SMCA-DINO'),
    images=Images(shape=(64, 96), batch=2, cfg_options={'model.decoder.num_layers': 1}),
    training_images=Images(shape=(64, 96), batch=2),
    dtypes=('bfloat16', 'float16'),
    steps=3,
    rounds=1,
)
SECTIONS = {
    'attention': Section(
        'The co-attention',
        "Forward and training pass of a decoder layer's co-attention, projections included, with a "
        'padding mask. The kernel is the one that PyTorch chose; a dash is none of its fused ones, '
        'with attention weights in memory (`flex` brings its own). `flex` is FlexAttention, '
        'compiled.',
        {
            'implementation': 'implementation',
            'queries': 'queries',
            'grid': 'keys',
            **attention_cost.COLUMNS,
            'kernel': 'kernel',
        },
    ),
    'precision': Section(
        'Precision',
        'Relative error against `explicit` in float64 on the same numbers.',
        {
            'implementation': 'implementation',
            'output_error': 'output',
            'gradient_error': 'gradient of the centres',
        },
    ),
    'detector': Section(
        'Detectors',
        'A training step (forward, backward, clipping, optimiser) and inference, of a batch; '
        'memory with parameters and optimiser.',
        {
            'num_queries': 'queries',
            'parameters_m': 'parameters, M',
            'gflops': 'GFLOPs',
            'train_ms': 'training step, ms',
            'train_mib': 'training memory, MiB',
            'test_ms': 'inference, ms',
            'test_mib': 'inference memory, MiB',
        },
    ),
    'compile': Section(
        'torch.compile',
        '`CompileHook`: backbone with neck, encoder, and decoder. The first call compiles.',
        compile_cost.COLUMNS,
    ),
    'training': Section(
        'Training in mixed precision',
        '`AmpOptimWrapper` on one batch of random images; float32 beside it. A loss or a weight '
        'that is not finite is a failure.',
        {
            'steps': 'steps',
            'first_loss': 'loss, first tenth',
            'last_loss': 'loss, last tenth',
            'loss_scale': 'scale of the loss',
            'skipped_steps': 'skipped steps',
        },
    ),
}


def parts(sizes: Sizes, device: str, backend: str) -> list[Part]:
    """What is measured, in the order of the page."""
    configs = {
        title: name if '::' in name else str(ROOT / 'configs' / name)
        for title, name in sizes.detectors.items()
    }
    images, training_images = (
        replace(x, device=device) for x in (sizes.images, sizes.training_images)
    )
    # A CPU trains in float16 neither through MMEngine nor through ours.
    training_dtypes = [x for x in sizes.dtypes if device == 'cuda' or x != 'float16']
    found = []
    for name, attention in sizes.attentions.items():
        for dtype in sizes.dtypes:
            setting = replace(attention, device=device, dtype=dtype, backend=backend)
            arguments = (setting, attention_cases.IMPLEMENTATIONS, sizes.rounds, MEMORY_LIMIT)
            part = f'attention of {name}, {dtype}'
            found.append(Part('attention', part, attention_cost.measure, arguments))
            part = f'error of {name}, {dtype}'
            found.append(Part('precision', part, attention_error.measure, (setting,)))
    for dtype in training_dtypes:
        for title, config in configs.items():
            arguments = (config, replace(images, dtype=dtype), sizes.rounds, MEMORY_LIMIT)
            part = f'{title}, {dtype}'
            found.append(Part('detector', part, detector_cost.measure_alone, arguments))
        for title in sizes.trained:
            arguments = (configs[title], replace(training_images, dtype=dtype), sizes.steps)
            part = f'training of {title}, {dtype}'
            found.append(Part('training', part, amp_training.measure, arguments))
        for title in sizes.compiled:
            arguments = (configs[title], replace(images, dtype=dtype), sizes.rounds, backend)
            part = f'{title} compiled, {dtype}'
            found.append(Part('compile', part, compile_cost.measure, arguments))
    return found


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/gpu'), help='folder for gpu.json and gpu.md'
    )
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument(
        '--small', action='store_true', help='tiny inputs and models: to see that it all runs'
    )
    parser.add_argument('--backend', default='inductor', help='of torch.compile')
    return parser.parse_args()


@command
def main() -> int:
    """Measure what is missing, write, and say what failed."""
    args = parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        build = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'
        print(
            f'No GPU to measure: PyTorch {torch.__version__}, built with {build}, finds none.',
            file=sys.stderr,
        )
        return 1
    flush_denormals()
    settings = benchmarks.settings(args, 'out')
    sizes = SMALL if args.small else FULL
    measured = parts(sizes, args.device, args.backend)
    rows = measure_parts(measured, args.out / 'gpu.json', settings)
    with written_whole(args.out / 'gpu.md') as partial:
        partial.write_text(page('On this GPU', SECTIONS, rows, settings))
    print(args.out / 'gpu.md')
    failed = [row for row in rows if benchmarks.failures([row])]
    for row in failed:
        print(f'{row["part"]}: {row["outcome"]}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
