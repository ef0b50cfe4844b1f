"""Check correctness and measure costs on a GPU: parity, precision, detectors, co-attention.

Example: python tools/analysis_tools/benchmark_gpu.py --out work_dirs/gpu --minutes 15

Writes gpu.json and gpu.md after every part, the most important part first. The same command
continues after the last part and repeats what failed. This package need not be installed, only its
dependencies. ``--small --device cpu`` tries everything out.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.append(str(ROOT))
NEEDED = (
    'torch', 'mmengine', 'mmcv', 'mmdet', 'addict', 'cv2', 'matplotlib', 'packaging',
    'pycocotools', 'rich', 'scipy', 'shapely', 'terminaltables', 'termcolor', 'yaml', 'yapf',
)  # fmt: skip
if MISSING := [name for name in NEEDED if find_spec(name) is None]:
    sys.exit(
        f'{sys.executable} lacks {", ".join(MISSING)}: `make install` installs everything; '
        'docs/gpu.md tells how to install without a network'
    )

import mmsmca  # noqa: E402, F401 - first: it keeps MMDetection's import quiet

# isort: split
import attention_error  # noqa: E402
import benchmark_attention  # noqa: E402
import benchmarks  # noqa: E402
import numerics  # noqa: E402
import torch  # noqa: E402
from benchmark_attention import measure_attention  # noqa: E402
from benchmarks import Part, Section  # noqa: E402
from cases import MODES, Detector, Setting, has_operators  # noqa: E402
from co_attention import IMPLEMENTATIONS, CoAttention  # noqa: E402
from measure import measure  # noqa: E402
from torch.nn.attention import SDPBackend, sdpa_kernel  # noqa: E402

from mmsmca.denormals import flush_denormals  # noqa: E402
from mmsmca.errors import command  # noqa: E402
from mmsmca.files import atomic_write  # noqa: E402

# Precisions in the order of their importance for training.
DTYPES = ['bfloat16', 'tf32', 'float16', 'float32']
KERNELS = ('FLASH_ATTENTION', 'EFFICIENT_ATTENTION', 'CUDNN_ATTENTION', 'MATH')
IMPLEMENTATION = 'model.decoder.layer_cfg.cross_attn_cfg.implementation'
PRIORS = {'as it is': 'folded', 'no prior': 'no_prior', 'FlexAttention': 'flex'}
# The optimizer of SMCA's configs, which MMDetection's do not have.
ONE_OPTIMIZER = {
    'optim_wrapper.constructor': 'GroupedOptimWrapperConstructor',
    'optim_wrapper.optimizer.fused': True,
}
# The classification loss of SMCA-DINO.
ONE_LOSS = {
    'model.bbox_head.loss_cls': dict(
        _delete_=True, type='QualityFocalLoss', use_sigmoid=True, beta=2.0, loss_weight=1.0
    )
}
DETR = Detector('mmdet::detr/detr_r50_8xb2-150e_coco.py', cfg_options=ONE_OPTIMIZER)
DINO = Detector(
    'mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py', cfg_options=ONE_OPTIMIZER | ONE_LOSS
)
OWN = {
    name: Detector(str(ROOT / 'configs' / config), cfg_options=ONE_OPTIMIZER)
    for name, config in (
        ('SMCA-DINO', 'smca_dino/smca-dino_r50_8xb2-12e_coco.py'),
        ('SMCA', 'smca/smca_r50_8xb2-50e_coco.py'),
        ('SMCA, multi scale', 'smca/smca-multi-scale_r50_8xb1-50e_coco.py'),
    )
}
# Detectors to compare; ratios are to the first of each pair.
PAIRS = [
    {'DINO': DINO, 'SMCA-DINO': OWN['SMCA-DINO']},
    {'DETR': DETR, 'SMCA': OWN['SMCA']},
]
LEVELS = ((100, 167), (50, 84), (25, 42), (13, 21))
ATTENTIONS = {
    'SMCA-DINO': CoAttention('folded', LEVELS, queries=900),
    'SMCA 25x42': CoAttention('folded', ((25, 42),)),
    'SMCA 50x84': CoAttention('folded', ((50, 84),)),
}
COSTS = {'name': 'detector', 'batch': 'batch'}
for _mode, _title in MODES.items():
    COSTS |= {
        f'{_mode}_operations': f'{_title}, operations',
        f'{_mode}_ms': 'ms',
        f'{_mode}_time_vs_first': 'vs first',
        f'{_mode}_images_per_s': 'images/s',
        f'{_mode}_mib': f'{_title}, MiB',
    }
SECTIONS = {
    'parity': Section(
        'Parity',
        'Relative error of a detector against itself on the CPU in float64, with the same weights '
        'and images: memory of the encoder, scores, boxes, and gradients. The decoder starts from '
        "the reference's queries.",
        {
            'dtype': 'precision',
            'memory': 'memory',
            'scores': 'scores',
            'boxes': 'boxes',
            'prior_grads': "gradients of the priors' parameters",
            'grads': 'gradients of all others',
        },
    ),
    'precision': Section(
        'Precision of the co-attention',
        'Relative error against `explicit` in float64 on the same numbers.',
        attention_error.COLUMNS,
    ),
    'detector': Section(
        'Detectors',
        'A training step (forward, backward, clipping, optimizer) and inference, in turns with the '
        'first of a pair; memory with parameters and optimizer. All use the fused, grouped AdamW; '
        'DINO uses the loss of SMCA-DINO. `deformable` says what computes deformable attention.',
        {'dtype': 'precision', **COSTS, 'deformable': 'deformable'},
    ),
    'share': Section(
        'What the prior costs in a step',
        'The detector as it is, whose co-attention computes in float32 under autocast; the same '
        'with plain attention without a prior, in the precision of autocast, in its place; and '
        'with FlexAttention in that precision. The difference from the second is the most that any '
        'other way of computing the prior could save.',
        COSTS,
    ),
    'kernel': Section(
        'Kernels',
        "The folded co-attention with each of PyTorch's kernels for "
        '`scaled_dot_product_attention` alone; the next table says which one it chooses by itself.',
        {
            'kernel': 'kernel',
            'test_ms': 'forward, ms',
            'train_ms': 'forward + backward, ms',
            **attention_error.COLUMNS,
        },
    ),
    'attention': Section(
        'The co-attention',
        "Forward and training pass of a decoder layer's co-attention, projections included, with a "
        'padding mask. The kernel is the one that PyTorch chose; a dash means none of its fused '
        'ones, so attention weights are in memory (`flex` brings its own).',
        {**benchmark_attention.COLUMNS, 'kernel': 'kernel'},
    ),
    'batch': Section(
        'Largest batch',
        'Largest number of images, as a power of two, that fits in memory.',
        {'name': 'detector', **{f'{mode}_batch': title for mode, title in MODES.items()}},
    ),
    'training': Section(
        'Training in mixed precision',
        '`AmpOptimWrapper` on one batch of random images, next to float32. A loss or a weight '
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


def measure_detectors(detectors: dict[str, Detector], setting: Setting, rounds: int) -> list[dict]:
    """Measure detectors in turns; ratios are to the first."""
    first, *_ = detectors
    rows = measure(detectors, setting, rounds, references=[first])
    return [
        {
            **{key.replace(f'vs_{first}', 'vs_first'): value for key, value in row.items()},
            'dtype': setting.dtype,
            'batch': setting.batch,
            'deformable': detectors[row['name']].deformable,
        }
        for row in rows
    ]


def measure_kernel(
    attention: CoAttention, setting: Setting, rounds: int, kernel: str
) -> list[dict]:
    """Measure time and errors of a co-attention with only one of PyTorch's kernels enabled."""
    row: dict = dict(kernel=kernel)
    with benchmarks.outcome_in(row, optional=True), sdpa_kernel(getattr(SDPBackend, kernel)):
        (times,) = measure({'folded': attention}, setting, rounds)
        (errors,) = attention_error.measure(attention, setting, ['folded'])
        row.update({**times, **errors, 'kernel': kernel})
    if benchmarks.failures([row]):  # A kernel that does not support this is not a failure.
        row['outcome'] = row['outcome'].replace(benchmarks.FAILED, benchmarks.NOT_AVAILABLE)
    return [row]


def measure_largest_batch(
    name: str, detector: Detector, setting: Setting, limit: int
) -> list[dict]:
    """Find the largest batch that fits in memory, as a power of two up to a limit."""
    row: dict = dict(name=name, dtype=setting.dtype)
    for mode in MODES:
        tried: dict = dict(outcome=benchmarks.MEASURED)
        batch = 1
        while batch <= limit and tried['outcome'] == benchmarks.MEASURED:
            (tried,) = measure({name: detector}, replace(setting, batch=batch), 1, modes=[mode])
            if tried['outcome'] == benchmarks.MEASURED:
                row[f'{mode}_batch'] = batch
            batch *= 2
        if benchmarks.failures([tried]):
            row['outcome'] = tried['outcome']
    return [{'outcome': benchmarks.MEASURED, **row}]


def parts(device: str, small: bool, backend: str) -> list[Part]:
    """Parts to measure: first correctness, then training and inference, then the rest."""
    own, pairs, attentions = OWN, PAIRS, ATTENTIONS
    dtypes, rounds, steps, batches, most = DTYPES, 7, 50, [1, 16], 512
    if small:
        own, *pairs = ({name: shrunk(x) for name, x in them.items()} for them in (OWN, *PAIRS))
        attentions = {
            name: replace(x, grids=((6, 8), (3, 4))[: len(x.grids)], queries=5)
            for name, x in attentions.items()
        }
        dtypes, rounds, steps, batches, most = DTYPES[:2], 1, 3, [1], 2
    dino, smca_dino = pairs[0].values()
    # Neither MMEngine's optimizer wrapper nor ours trains in float16 on a CPU.
    trained = [dtype for dtype in dtypes if device == 'cuda' or dtype != 'float16']
    found = []

    def add(section: str, name: str, function: Callable, *arguments: object) -> None:
        found.append(Part(section, f'{section}: {name}', function, arguments))

    def on(dtype: str, batch: int = 2) -> Setting:
        # All cores compute the references of `parity`, which take minutes with two.
        return Setting(batch, dtype, device, threads=os.cpu_count() or 1)

    def add_pairs(pairs: Sequence[dict[str, Detector]], dtypes: Sequence[str], batch: int) -> None:
        for dtype in dtypes:
            for pair in pairs:
                name = f'{" and ".join(pair)}, {batch} images, {dtype}'
                add('detector', name, measure_detectors, pair, on(dtype, batch), rounds)

    for name, detector in {**own, 'DINO': dino}.items():
        for dtype in ('float64', *dtypes):
            add('parity', f'{name}, {dtype}', numerics.parity, detector, on(dtype))
    for name, attention in attentions.items():
        for dtype in dtypes:
            add('precision', f'{name}, {dtype}', attention_error.measure, attention, on(dtype))
    add_pairs(pairs, trained, batch=2)
    for name in ('SMCA-DINO', 'SMCA'):
        ways = {
            title: replace(
                with_option(own[name], IMPLEMENTATION, way, optional=way == 'flex'), backend=backend
            )
            for title, way in PRIORS.items()
        }
        add('share', name, measure_detectors, ways, on('bfloat16'), rounds)
    for batch in batches:
        add_pairs(pairs, trained, batch)
    for deformable in ('float32', 'pytorch'):
        other = {
            'SMCA-DINO': smca_dino,
            f'DINO, {deformable}': replace(dino, deformable=deformable),
        }
        add_pairs([other], ['bfloat16'], batch=2)
    for name, attention in attentions.items():
        attention = replace(attention, backend=backend)
        for dtype in dtypes:
            for kernel in KERNELS:
                forced = attention, on(dtype), rounds, kernel
                add('kernel', f'{name}, {dtype}, {kernel}', measure_kernel, *forced)
            every_way = attention, on(dtype), rounds, None, IMPLEMENTATIONS
            add('attention', f'{name}, {dtype}', measure_attention, *every_way)
    for name, detector in {**pairs[0], **pairs[1]}.items():
        add('batch', name, measure_largest_batch, name, detector, on('bfloat16'), most)
    for name in ('SMCA-DINO', 'SMCA'):
        for dtype in trained:
            add('training', f'{name}, {dtype}', numerics.training, own[name], on(dtype), steps)
    return found


def shrunk(detector: Detector) -> Detector:
    """Reduce a detector to one decoder layer and tiny images, to check that it runs."""
    detector = with_option(detector, 'model.decoder.num_layers', 1)
    return replace(detector, shape=(64, 96), queries=100)


def with_option(detector: Detector, key: str, value: object, optional: bool = False) -> Detector:
    """Copy of a detector with one more config option."""
    options = {**detector.cfg_options, key: value}
    return replace(detector, cfg_options=options, optional=optional)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument(
        '--out', type=Path, default=Path('work_dirs/gpu'), help='folder for gpu.json and gpu.md'
    )
    parser.add_argument(
        '--minutes', type=float, help='time limit for all parts; run again for those still missing'
    )
    parser.add_argument('--device', choices=('cuda', 'cpu'), default='cuda')
    parser.add_argument(
        '--small', action='store_true', help='tiny inputs and models, to check that everything runs'
    )
    parser.add_argument('--backend', default='inductor', help='backend of torch.compile')
    return parser.parse_args()


@command
def main() -> int:
    """Measure what is missing, write the results, and print what failed."""
    args = parse_args()
    if args.device == 'cuda' and not torch.cuda.is_available():
        build = f'CUDA {torch.version.cuda}' if torch.version.cuda else 'no CUDA'
        print(
            f'No GPU to measure: PyTorch {torch.__version__}, built with {build}, finds none.',
            file=sys.stderr,
        )
        return 1
    flush_denormals()
    settings = benchmarks.settings(args, 'out', 'minutes')
    settings['operators'] = has_operators()

    def write_page(rows: list[dict]) -> None:
        with atomic_write(args.out / 'gpu.md') as partial:
            partial.write_text(benchmarks.page('On this GPU', SECTIONS, rows, settings))

    planned = parts(args.device, args.small, args.backend)
    path = args.out / 'gpu.json'
    rows = benchmarks.measure_parts(planned, path, settings, args.minutes, write_page)
    measured = {row['part'] for row in rows}
    print(f'{args.out / "gpu.md"}: {len(measured)} of {len(planned)} parts')
    failed = [row for row in rows if benchmarks.failures([row])]
    for row in failed:
        print(f'{row["part"]}: {row["outcome"]}', file=sys.stderr)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
