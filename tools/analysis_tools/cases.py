"""Benchmark cases on random inputs: their settings, and whole detectors as cases."""

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import mmcv.ops.multi_scale_deform_attn as deformable_attention
import other_attention
import torch
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmdet.utils import register_all_modules
from mmengine.config import Config
from mmengine.hub import get_config
from mmengine.optim import build_optim_wrapper
from torch import Tensor

from mmsmca.denormals import flush_denormals
from mmsmca.engine.cpu import BFloat16OptimWrapper
from mmsmca.engine.quiet import quiet

_PYTORCH_CODE = deformable_attention.multi_scale_deformable_attn_pytorch
MODES = {'train': 'training step', 'test': 'inference'}


class Case(NamedTuple):
    """Functions to time, and what they run.

    Attributes:
        train: Function that runs a training step.
        test: Function that runs inference.
        model: Module that both run.
        optim_wrapper: Optimizer wrapper of the module; None for a co-attention.
        data: Batch, as from a data loader; empty for a co-attention.
    """

    train: Callable[[], object]
    test: Callable[[], object]
    model: Any
    optim_wrapper: object = None
    data: dict = {}


@dataclass(frozen=True)
class Setting:
    """Setting of a measurement: batch size, precision, device and threads.

    Attributes:
        batch: Images B; if several, the last is smaller, so that attention gets a padding mask.
        dtype: ``float32``, ``tf32``, or a half precision, which autocast applies.
        device: ``cpu`` or ``cuda``.
        threads: Number of threads on a CPU.
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
        """Precision of autocast; None without autocast."""
        return getattr(torch, self.dtype) if self.dtype in ('bfloat16', 'float16') else None

    def autocast(self) -> torch.autocast:
        """Context for the forward pass."""
        return torch.autocast(self.device, self.amp, enabled=self.amp is not None)


@dataclass(frozen=True)
class Detector:
    """A whole detector, from images to boxes, with its config's optimizer.

    Attributes:
        config: Path of the config, or ``package::path``.
        shape: Height and width of the images, in pixels.
        queries: Replacement for the config's ``model.num_queries``, or None.
        cfg_options: Config overrides by dotted key.
        backend: Backend of ``torch.compile``, for FlexAttention.
        deformable: Implementation of deformable attention on a GPU: ``operator`` is mmcv's, which
            leaves bfloat16 to PyTorch code; ``float32`` runs the operator in float32 in that case;
            ``pytorch`` always runs the PyTorch code, as if mmcv had no operators.
        optional: Whether an error means that the detector is unavailable, not that it failed.
    """

    config: str
    shape: tuple[int, int] = (800, 1333)
    queries: int | None = None
    cfg_options: dict = field(default_factory=dict)
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
            # MMEngine's wrapper runs on accelerators only.
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
        # Optimizer and initialisation log a line for every layer.
        with quiet(logging.WARNING):
            model = MODELS.build(cfg.model).to(setting.device)
            # Weights that training starts from; others may give denormal gradients, which are slow.
            model.init_weights()
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
    """Choose mmcv's implementation of deformable attention, see :class:`Detector`."""
    on_gpu = has_operators() and torch.cuda.is_available()
    deformable_attention.IS_CUDA_AVAILABLE = on_gpu and name != 'pytorch'
    deformable_attention.multi_scale_deformable_attn_pytorch = (
        _operator_in_float32 if on_gpu and name == 'float32' else _PYTORCH_CODE
    )


def has_operators() -> bool:
    """Whether mmcv has its compiled operators, rather than the package's stand-in for them."""
    return getattr(sys.modules['mmcv._ext'].__spec__, 'loader', None) is not None


def _operator_in_float32(value: Tensor, shapes: Tensor, places: Tensor, weights: Tensor) -> Tensor:
    """Run mmcv's operator in float32, with the arguments of its PyTorch code."""
    starts = torch.cat((shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]))
    arguments = value.float(), shapes, starts, places.float(), weights.float(), 64
    operator = deformable_attention.MultiScaleDeformableAttnFunction
    return operator.apply(*arguments).to(value.dtype)
