"""Runtimes of an exported detector on the CPU, as functions from images to detections."""

from collections.abc import Callable, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mmsmca.denormals import denormals_kept, switched_on

from .program import INPUTS, OUTPUTS

# Boxes, scores and labels of every image in a batch; images are BGR, (H, W, 3), uint8.
Detections = list[tuple[np.ndarray, ...]]
Detect = Callable[[Sequence[np.ndarray]], Detections]


def pad(images: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Pad images to a batch; return the inputs of :meth:`.DeployedSMCA.forward` as arrays."""
    sizes = np.array([image.shape[:2] for image in images])
    # Padding is white here. The program itself has to replace it as the data preprocessor pads.
    padded = np.full((len(images), *sizes.max(axis=0), 3), 255, dtype=np.uint8)
    for canvas, image in zip(padded, images, strict=True):
        canvas[: image.shape[0], : image.shape[1]] = image
    return padded, sizes


def start_onnxruntime(
    graph: bytes | str | Path, threads: int | None = None, flush_denormals: bool | None = None
) -> Detect:
    """Start onnxruntime.

    Args:
        graph: The serialised graph, or its file.
        threads: Number of threads. Defaults to None: as many as PyTorch uses.
        flush_denormals: Whether to flush denormal numbers to zero. Defaults to None: as set for
            PyTorch, see :mod:`mmsmca.denormals`.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    flush = switched_on() if flush_denormals is None else flush_denormals
    options.add_session_config_entry('session.set_denormal_as_zero', str(int(flush)))
    source = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(source, options, providers=['CPUExecutionProvider'])
    return partial(_run_onnxruntime, session)


def _run_onnxruntime(session, images: Sequence[np.ndarray]) -> Detections:
    outputs = session.run(OUTPUTS, dict(zip(INPUTS, pad(images), strict=True)))
    return list(zip(*outputs, strict=True))


@cache
def openvino_core() -> Any:
    """The process's only ``openvino.Core``.

    The CPU plugin of every core gives the thread a stack for signal handlers and frees it with the
    core. If cores overlap, OpenVINO 2026.4 may restore one that is already freed: the next signal,
    such as the end of a child process, then kills the process.
    """
    import openvino

    return openvino.Core()


def start_openvino(
    model: str | Path,
    threads: int | None = None,
    precision: str | None = None,
    streams: int = 1,
) -> Detect:
    """Start OpenVINO.

    Args:
        model: File of the model, .xml.
        threads: Number of threads. Defaults to None: as many as PyTorch uses.
        precision: ``f32`` or ``bf16``. Defaults to None: what OpenVINO considers fastest on this
            processor.
        streams: Number of calls that run in parallel and share the threads. Defaults to 1.
    """
    settings: dict[str, Any] = dict(
        INFERENCE_NUM_THREADS=threads or torch.get_num_threads(), NUM_STREAMS=streams
    )
    if precision is not None:
        settings['INFERENCE_PRECISION_HINT'] = precision
    return partial(_run_openvino, openvino_core().compile_model(model, 'CPU', settings))


def _run_openvino(compiled, images: Sequence[np.ndarray]) -> Detections:
    inputs = dict(zip(INPUTS, pad(images), strict=True))
    # Called from a thread that flushes them, OpenVINO 2026.4 gives NaN for scores of padded images
    # on processors without AVX-512.
    with denormals_kept():
        found = compiled.create_infer_request().infer(inputs)
    return list(zip(*(found[name].copy() for name in OUTPUTS), strict=True))
