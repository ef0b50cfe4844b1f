"""Measure detectors in turns with a rival: time, memory, GFLOPs; also a profile, and parity.

Example: python tools/analysis_tools/benchmark_model.py \
    mmdet::dino/dino-4scale_r50_8xb2-12e_coco.py \
    configs/smca_dino/smca-dino_r50_8xb2-12e_coco.py --json rows.json
The first config is the rival.
"""

import argparse
import copy
import inspect
import itertools
import logging
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import mmsmca  # noqa: F401 - first: it keeps MMDetection's import quiet

# isort: split
import benchmarks
import torch
from benchmarks import MODES, Case, Setting
from mmcv.ops import multi_scale_deform_attn as deform
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config, DictAction
from mmengine.optim import build_optim_wrapper
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, record_function

from mmsmca.checks.config import load_config
from mmsmca.config_scope import config_path
from mmsmca.engine import flops
from mmsmca.engine.cpu import BFloat16OptimWrapper
from mmsmca.engine.quiet import quiet
from mmsmca.errors import command
from mmsmca.files import write_json

COLUMNS = {
    'config': 'config',
    'dtype': 'precision',
    'batch': 'images',
    'num_queries': 'queries',
    'parameters_m': 'parameters, M',
    'gflops': 'GFLOPs',
    **benchmarks.COSTS,
}
# The parts of a profile are these modules, with all layers together, and these methods.
MODULES = re.compile(r'\w+|(encoder|decoder)\.(layers\.)?\w+')
STEPS = (('model', 'pre_decoder'), ('bbox_head', 'loss_by_feat'), ('optim_wrapper', 'backward'),
         ('optim_wrapper', 'step'))  # fmt: skip
PROFILE = {
    'part': 'part',
    'forward_ms': 'forward, ms',
    'backward_ms': 'backward, ms',
    'host_ms': 'to launch both, ms',
}
PARITY = ('memory', 'scores', 'boxes', 'prior_grads', 'grads')
# Begins the names of operations of the backward pass.
BACKWARD = 'autograd::engine::evaluate_function: '
pytorch_code = deform.multi_scale_deformable_attn_pytorch
# Parameters of the priors: their centres and extents.
PRIOR = ('spatial_prior.', 'center_head.')
# The queries that a decoder starts from.
QUERIES = ('query', 'query_pos', 'reference_points')


class Detector(NamedTuple):
    """A detector with its config's optimizer, and a batch.

    Attributes:
        config: Path of the config, or ``package::path``.
        shape: Height and width of the images, in pixels.
        batch: Number of images; if several, the last is smaller, so that it is padded.
        options: Config overrides by dotted key.
    """

    config: str
    shape: tuple[int, int]
    batch: int
    options: dict

    def load_config(self, setting: Setting) -> Config:
        """Load the config without pretrained weights."""
        cfg = load_config(argparse.Namespace(config=self.config, cfg_options=self.options))
        cfg.model.backbone.init_cfg = None
        if setting.amp is not None:
            # MMEngine's wrapper runs on accelerators only.
            amp = 'AmpOptimWrapper' if setting.device != 'cpu' else BFloat16OptimWrapper
            cfg.optim_wrapper.update(type=amp, dtype=setting.dtype)
        return cfg

    def parts(self, setting: Setting) -> tuple[Any, Any, dict]:
        """Build the model, with the weights that training starts from, its optimizer and batch."""
        setting.prepare()
        register_all_modules()
        cfg = self.load_config(setting)
        # Optimizer and initialisation log a line for every layer.
        with quiet(logging.WARNING):
            model = MODELS.build(cfg.model).to(setting.device)
            model.init_weights()
            optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        height, width = self.shape
        shapes = [(3, height, width)] * (self.batch - 1) + [(3, height, width * 9 // 10)]
        data = demo_mm_inputs(
            self.batch,
            shapes if self.batch > 1 else [(3, height, width)],
            num_items=[7] * self.batch,
            num_classes=cfg.model.bbox_head.num_classes,
        )
        return model, optim_wrapper, data

    def build(self, setting: Setting) -> Case:
        """Build what is timed: a training step, and inference from images to boxes."""
        model, optim_wrapper, data = self.parts(setting)

        @torch.no_grad()
        def test() -> None:
            with setting.autocast():
                model.eval().test_step(data)

        return Case(lambda: model.train().train_step(data, optim_wrapper), test)

    def cost(self, threads: int) -> dict[str, float]:
        """Queries, millions of parameters, and billions of multiply-adds for one image.

        They are counted on the CPU: on a GPU, nobody counts those of MMCV's operators.
        """
        model, _, data = self._replace(batch=1).parts(Setting(threads=threads))
        with quiet(logging.WARNING):
            parameters, multiply_adds = flops.complexity(model.eval(), data)
        return dict(
            num_queries=model.num_queries,
            parameters_m=parameters / 1e6,
            gflops=multiply_adds / 1e9,
        )


def measure_detectors(
    args: argparse.Namespace, dtype: str, batch: int, costs: dict[str, dict]
) -> Iterator[dict]:
    """Measure detectors in turns with the first; yield a row each. ``costs`` are counted once."""
    setting = Setting(dtype, args.device, args.threads)
    configs = args.configs
    for config in configs[1:] or configs:
        # Only the rival and one more detector are in memory.
        builds = {
            name: partial(detector(name, args, batch).build, setting)
            for name in dict.fromkeys((configs[0], config))
        }
        rows = benchmarks.measure(builds, setting, args.rounds, args.modes)
        for row in rows if config in configs[:2] else rows[1:]:
            name = row.pop('name')
            with benchmarks.error_in(row):
                if name not in costs:
                    costs[name] = detector(name, args, 1).cost(args.threads)
                row.update(costs[name])
            yield dict(config=name, dtype=dtype, batch=batch, **row)


def in_float32(value: Tensor, shapes: Tensor, points: Tensor, weights: Tensor) -> Tensor:
    """Deformable attention in float32; arguments and result are those of mmcv's PyTorch code."""
    wide, points, weights = value.float(), points.float(), weights.float()
    if not (value.is_cuda and deform.IS_CUDA_AVAILABLE):
        return pytorch_code(wide, shapes, points, weights).to(value.dtype)
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    apply = deform.MultiScaleDeformableAttnFunction.apply
    return apply(wide, shapes, starts, points, weights, 64).to(value.dtype)


def detector(config: str, args: argparse.Namespace, batch: int) -> Detector:
    return Detector(config, tuple(args.shape), batch, args.cfg_options or {})


def parity(config: str, args: argparse.Namespace) -> Iterator[dict]:
    """Compare a detector with itself on the CPU in float64, on two images of half the sides.

    The decoder starts from the reference's queries, so that near ties of proposals do not reorder
    them. Gradients are those of a weighted sum of all scores and boxes.

    Yields:
        A row per precision: relative errors in the Frobenius norm of the encoder's ``memory``, of
        ``scores`` and ``boxes``, and of the gradients of the priors' parameters (``prior_grads``)
        and of all others (``grads``).
    """
    exact = Setting('float64', 'cpu', args.threads)
    half = detector(config, args, 2)._replace(shape=tuple(side // 2 for side in args.shape))
    model, _, data = half.parts(Setting(threads=args.threads))
    for parameter in model.parameters():
        if not parameter.any():  # Zeros would mask errors in other layers.
            torch.nn.init.normal_(parameter, std=0.02)
    failed: dict = dict(config=config, dtype='float64')
    with benchmarks.error_in(failed):
        queries, expected = outputs(model, data, None, exact)
    if 'error' in failed:
        yield failed
        return
    for dtype in ('float64', *args.dtype):
        row: dict = dict(config=config, dtype=dtype)
        with benchmarks.error_in(row):
            _, found = outputs(model, data, queries, Setting(dtype, args.device, args.threads))
            row.update({k: relative_error(found[k], x) for k, x in expected.items() if x})
        yield row


def relative_error(actual: list[Tensor], expected: list[Tensor]) -> float:
    """Norm of the difference divided by the norm of ``expected``, over all tensors together."""
    a, b = (torch.cat([x.detach().double().cpu().flatten() for x in y]) for y in (actual, expected))
    return ((a - b).norm() / b.norm()).item()


def outputs(
    model: Any, data: dict, queries: dict | None, setting: Setting
) -> tuple[dict, dict[str, list[Tensor]]]:
    """Run a copy of a model; return the decoder's queries and what :func:`parity` compares."""
    setting.prepare()
    data = model.data_preprocessor(copy.deepcopy(data))
    images, samples = data['inputs'].to(setting.device, setting.weights), data['data_samples']
    model = copy.deepcopy(model).to(setting.device, setting.weights).eval()
    with setting.autocast():
        encoder_inputs, decoder_inputs = model.pre_transformer(model.extract_feat(images), samples)
        encoded = model.forward_encoder(**encoder_inputs)
        given = {'batch_data_samples': samples}
        if 'batch_data_samples' not in inspect.signature(model.pre_decoder).parameters:
            given = {}
        selected, _ = model.pre_decoder(**encoded, **given)
        if queries is None:
            queries = {k: x.detach() for k, x in selected.items() if k in QUERIES}
        moved = {k: x.to(setting.device, setting.weights) for k, x in queries.items()}
        decoded = model.forward_decoder(**decoder_inputs | selected | moved)
        scores, boxes = model.bbox_head(**decoded)[:2]
    both = torch.cat([x.double().flatten() for x in (scores, boxes)])
    loss = both @ torch.linspace(-1, 1, len(both)).to(both)
    parameters = {k: p for k, p in model.named_parameters() if p.requires_grad}
    gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
    found: dict[str, list[Tensor]] = dict(scores=[scores], boxes=[boxes], prior_grads=[], grads=[])
    for name, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            found['prior_grads' if any(part in name for part in PRIOR) else 'grads'].append(
                gradient
            )
    memory = encoded['memory']
    found['memory'] = [memory if isinstance(memory, Tensor) else memory[0]]
    return queries, found


def profile_step(
    config: str, args: argparse.Namespace, dtype: str, batch: int
) -> tuple[list[dict], str]:
    """Profile a training step by module.

    An operation counts for the innermost part that it runs in, and in the backward pass for the
    part whose forward pass made it necessary. So the parts add up to the step.

    Returns:
        A row per part, the longest first: ``forward_ms`` and ``backward_ms``, the time that its
        operations take on the device, and on a GPU ``host_ms``, the time to launch them; and the
        operators that take longest, as a table of torch.profiler.
    """
    model, optim_wrapper, data = detector(config, args, batch).parts(
        Setting(dtype, args.device, args.threads)
    )
    for _ in range(3):
        model.train().train_step(data, optim_wrapper)
    parts = set()
    for name, module in list(model.named_modules())[1:]:
        part = re.sub(r'\.\d+', '', name)
        if MODULES.fullmatch(part):
            module.forward = recorded(part, module.forward)
            parts.add(part)
    owners = dict(model=model, bbox_head=model.bbox_head, optim_wrapper=optim_wrapper)
    for owner, method in STEPS:
        setattr(owners[owner], method, recorded(method, getattr(owners[owner], method)))
        parts.add(method)
    on_gpu = args.device == 'cuda'
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiler:
        model.train_step(data, optim_wrapper)
    of = 'device' if on_gpu else 'cpu'
    rows: dict[str, dict] = {}
    for (part, column), event in parts_of(profiler.events(), parts):
        row = rows.setdefault(part, dict(part=part, forward_ms=0.0, backward_ms=0.0))
        row[column] += getattr(event, f'self_{of}_time_total') / 1e3
        if on_gpu:
            row['host_ms'] = row.get('host_ms', 0) + event.self_cpu_time_total / 1e3
    longest = sorted(rows.values(), key=lambda row: -row['forward_ms'] - row['backward_ms'])
    table = profiler.key_averages().table(sort_by=f'self_{of}_time_total', row_limit=25)
    return [dict(config=config, dtype=dtype, batch=batch, **row) for row in longest], table


def parts_of(events: Iterable[Any], parts: set[str]) -> Iterator[tuple[tuple[str, str], Any]]:
    """Yield part and column of every operation, with its event."""
    made_by: dict[int, str] = {}  # Sequence numbers connect the passes of an operation.
    for event in sorted(events, key=lambda event: event.time_range.start):
        if event.device_type != DeviceType.CPU:  # Kernels, which count for what launched them.
            continue
        found, ancestor = ('rest', 'forward_ms'), event
        while ancestor is not None:
            if ancestor.name.startswith(BACKWARD):
                # Gradients are accumulated by no part.
                found = made_by.get(ancestor.sequence_nr, 'backward'), 'backward_ms'
                break
            if ancestor.name in parts:
                found = ancestor.name, 'forward_ms'
                break
            ancestor = ancestor.cpu_parent
        if event.sequence_nr >= 0 and found[1] == 'forward_ms':
            made_by[event.sequence_nr] = found[0]
        yield found, event


def recorded(name: str, function: Callable) -> Callable:
    def call(*args: object, **kwargs: object) -> object:
        with record_function(name):
            return function(*args, **kwargs)

    return call


def parse_args() -> argparse.Namespace:
    parser = benchmarks.argument_parser(__doc__.splitlines()[0], rounds=7)
    benchmarks.add_torch_arguments(parser)
    parser.add_argument('configs', nargs='+', metavar='CONFIG', help='the first is the rival')
    parser.add_argument(
        '--shape', type=int, nargs=2, default=(800, 1333), metavar=('H', 'W'), help='in pixels'
    )
    parser.add_argument('--batch', type=int, nargs='+', default=[1], help='numbers of images')
    parser.add_argument(
        '--modes', nargs='*', choices=MODES, default=list(MODES), help='nothing if left empty'
    )
    parser.add_argument(
        '--operator-float32', action='store_true',
        help="deformable attention in float32, by mmcv's operator if it is compiled; mmcv itself "
        'leaves bfloat16 to PyTorch code',
    )  # fmt: skip
    parser.add_argument(
        '--profile', action='store_true', help='also profile a training step, by module'
    )
    parser.add_argument(
        '--parity', action='store_true', help='also compare each with itself in float64 on the CPU'
    )
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='for all configs')
    return parser.parse_args()


@command
def main() -> int:
    """Measure; print and write after every row; return 1 after an error."""
    args = parse_args()
    for name in args.configs:
        config_path(name)
    result: dict = dict(settings=benchmarks.settings(args), rows=[], profile=[], parity=[])
    if args.operator_float32:
        deform.multi_scale_deformable_attn_pytorch = in_float32

    def add(kind: str, *rows: dict) -> None:
        result[kind] += rows
        for row in rows:
            print(*(f'{key} {value}' for key, value in row.items()), sep=', ', flush=True)
        if args.json:
            write_json(args.json, result)

    settings = list(itertools.product(args.dtype, args.batch))
    costs: dict[str, dict] = {}
    for dtype, batch in settings if args.modes else ():
        for row in measure_detectors(args, dtype, batch, costs):
            add('rows', row)
    if args.modes:
        print(benchmarks.markdown_table(result['rows'], COLUMNS))
    for (dtype, batch), config in itertools.product(settings, args.configs if args.profile else ()):
        failed: dict = dict(config=config, dtype=dtype, batch=batch)
        with benchmarks.error_in(failed):
            rows, table = profile_step(config, args, dtype, batch)
            print(table)
            add('profile', *rows)
            print(benchmarks.markdown_table(rows, PROFILE))
        if 'error' in failed:
            add('profile', failed)
    for config in args.configs if args.parity else ():
        for row in parity(config, args):
            add('parity', row)
    measured = (*result['rows'], *result['profile'], *result['parity'])
    return int(any('error' in row for row in measured))


if __name__ == '__main__':
    sys.exit(main())
