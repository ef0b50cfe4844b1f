"""What is measured, on random inputs: a detector, or the co-attention of a decoder layer."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, NamedTuple

import mmcv.ops.multi_scale_deform_attn as deformable_attention
import other_attention
import torch
from mmdet.registry import HOOKS, MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from mmsmca.denormals import flush_denormals
from mmsmca.engine.cpu import BFloat16OptimWrapper
from mmsmca.engine.hooks.compile_hook import CompileHook
from mmsmca.engine.quiet import quiet

_PYTORCH_CODE = deformable_attention.multi_scale_deformable_attn_pytorch
MODES = {'train': 'training step', 'test': 'inference'}


class Case(NamedTuple):
    """What is timed.

    Attributes:
        train: A training step.
        test: Inference.
        model: The module that both run.
        optim_wrapper: Its optimizer; None for a co-attention.
        data: A batch, as data loaders give it; empty for a co-attention.
    """

    train: Callable[[], object]
    test: Callable[[], object]
    model: Any
    optim_wrapper: object = None
    data: dict = {}


@dataclass(frozen=True)
class Setting:
    """What everything is measured on.

    Attributes:
        batch: Images B; of several the last is smaller, so that attention gets a padding mask.
        dtype: ``float32``, ``tf32``, or half precision, which is by autocast.
        device: ``cpu`` or ``cuda``.
        threads: Threads on a CPU.
    """

    batch: int = 1
    dtype: str = 'float32'
    device: str = 'cpu'
    threads: int = 2

    def prepare(self) -> None:
        """Set up this process: seed, threads, TF32, denormal numbers."""
        torch.manual_seed(0)
        torch.set_num_threads(self.threads)
        flush_denormals()
        torch.backends.cuda.matmul.allow_tf32 = self.dtype == 'tf32'
        torch.backends.cudnn.allow_tf32 = self.dtype == 'tf32'

    @property
    def amp(self) -> torch.dtype | None:
        """Precision of autocast, or None without it."""
        return getattr(torch, self.dtype) if self.dtype in ('bfloat16', 'float16') else None

    def autocast(self) -> torch.autocast:
        """The context that the forward pass runs in."""
        return torch.autocast(self.device, self.amp, enabled=self.amp is not None)


@dataclass(frozen=True)
class Detector:
    """A detector with its config's optimizer, from images to boxes.

    Attributes:
        config: Path of the config, or ``package::path``.
        shape: Height and width of the images, in pixels.
        queries: ``model.num_queries`` instead of the config's, or None.
        cfg_options: Settings of the config to change, by dotted key.
        compiled: Parts that ``CompileHook`` compiles.
        backend: Backend of ``torch.compile``, of FlexAttention too.
        deformable: What computes deformable attention on a GPU: ``operator``, mmcv's, which leaves
            bfloat16 to PyTorch code; ``float32``, the operator, in float32 where it would; or
            ``pytorch``, that code, as where mmcv has no operators.
        optional: Whether it may be unavailable, rather than fail.
    """

    config: str
    shape: tuple[int, int] = (800, 1333)
    queries: int | None = None
    cfg_options: dict = field(default_factory=dict)
    compiled: tuple[str, ...] = ()
    backend: str = 'inductor'
    deformable: str = 'operator'
    optional: bool = False

    def load_config(self, setting: Setting) -> Config:
        """Load the config with the options above, without pretrained weights."""
        cfg = get_config(self.config) if '::' in self.config else Config.fromfile(self.config)
        cfg.model.backbone.init_cfg = None
        if self.queries is not None:
            cfg.model.num_queries = self.queries
        cfg.merge_from_dict(self.cfg_options)
        if setting.amp is not None:
            # MMEngine's own runs on accelerators only.
            amp = 'AmpOptimWrapper' if setting.device != 'cpu' else BFloat16OptimWrapper
            cfg.optim_wrapper.update(type=amp, dtype=setting.dtype)
        return cfg

    def build(self, setting: Setting) -> Case:
        """Build model, optimizer and a batch."""
        setting.prepare()
        register_all_modules()
        choose_deformable_attention(self.deformable)
        other_attention.BACKEND = self.backend
        cfg = self.load_config(setting)
        # Optimizer and initialisation have a line to say about every layer.
        with quiet(logging.WARNING):
            model = MODELS.build(cfg.model).to(setting.device)
            # As when training starts; other weights may give denormal gradients, which take longer.
            model.init_weights()
        for hook in cfg.get('custom_hooks', []):
            # One that changes the model does so here.
            HOOKS.build(hook).before_run(SimpleNamespace(model=model))
        if self.compiled:
            torch._dynamo.reset()  # Nothing is compiled yet, whatever was measured before.
            hook = CompileHook(self.compiled, backend=self.backend)
            hook.before_run(SimpleNamespace(model=model))
        with quiet(logging.WARNING):
            optim_wrapper = build_optim_wrapper(model, cfg.optim_wrapper)
        height, width = self.shape
        shapes = [(3, height, width)] * setting.batch
        if setting.batch > 1:
            shapes[-1] = (3, height, width * 9 // 10)
        data = demo_mm_inputs(
            setting.batch,
            shapes,
            num_items=[7] * setting.batch,
            num_classes=cfg.model.bbox_head.num_classes,
        )

        def train() -> dict[str, Tensor]:
            return model.train().train_step(data, optim_wrapper)

        @torch.no_grad()
        def test() -> None:
            with setting.autocast():
                model.eval().test_step(data)

        return Case(train, test, model, optim_wrapper, data)


def choose_deformable_attention(name: str) -> None:
    """Let mmcv compute deformable attention by another code, see :class:`Detector`."""
    on_gpu = has_operators() and torch.cuda.is_available()
    deformable_attention.IS_CUDA_AVAILABLE = on_gpu and name != 'pytorch'
    deformable_attention.multi_scale_deformable_attn_pytorch = (
        _operator_in_float32 if on_gpu and name == 'float32' else _PYTORCH_CODE
    )


def has_operators() -> bool:
    """Whether mmcv has its compiled operators, rather than the package's stand-in for them."""
    return getattr(sys.modules['mmcv._ext'].__spec__, 'loader', None) is not None


def _operator_in_float32(value: Tensor, shapes: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Mmcv's operator with the arguments of its PyTorch code."""
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    arguments = value.float(), shapes, starts, places.float(), weights.float(), 64
    operator = deformable_attention.MultiScaleDeformableAttnFunction
    return operator.apply(*arguments).to(value.dtype)
