"""Timing that is robust on a shared machine, and a record of the environment."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from datetime import datetime, timezone
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import mmcv
import mmdet
import mmengine
import numpy as np
import torch
from mmengine.utils.dl_utils import collect_env
from torch.utils.benchmark import timer

from mmsmca.denormals import denormals_flushed
from mmsmca.version import __version__


def interleaved_times(
    calls: dict[str, Callable[[], object]],
    rounds: int,
    min_seconds: float = 0.1,
    pause: float = 0.0,
) -> dict[str, list[float]]:
    """Time calls in turns, so that a temporary slowdown of the machine affects all of them.

    Args:
        calls: Functions to time, by name. Each is called once to warm up.
        rounds: Number of measurements of each.
        min_seconds: A measurement repeats its call until about this time has passed. Defaults to
            0.1 seconds.
        pause: Seconds to wait before each measurement until threads of the previous one are idle:
            onnxruntime's keep cores busy while they wait for more work. Defaults to 0.

    Returns:
        Seconds per call by name, one number per round, including work on the accelerator.
    """
    repeats = {}
    for name, call in calls.items():
        call()
        repeats[name] = max(1, round(min_seconds / _seconds(call, 1)))
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            time.sleep(pause)
            times[name].append(_seconds(call, repeats[name]))
    return times


def _seconds(call: Callable[[], object], repeats: int) -> float:
    start = timer()
    for _ in range(repeats):
        call()
    return (timer() - start) / repeats


def paired_ratio(times: Sequence[float], reference: Sequence[float]) -> float:
    """Median over the rounds of the ratio of a time to that of the reference.

    Args:
        times: Seconds, one number per round.
        reference: Seconds of the reference in the same rounds.
    """
    return statistics.median(t / r for t, r in zip(times, reference, strict=True))


def paired_spread(times: Sequence[float], reference: Sequence[float]) -> list[float]:
    """Lower and upper quartile of the ratios whose median is :func:`paired_ratio`."""
    ratios = [t / r for t, r in zip(times, reference, strict=True)]
    return [float(quartile) for quartile in np.quantile(ratios, (0.25, 0.75))]


def in_own_process(function: Callable, *args: object) -> Any:
    """Run a module-level function in a process of its own, and return its result.

    Raises:
        BrokenProcessPool: If the process was killed, for example for its memory.
    """
    with ProcessPoolExecutor(1, mp_context=get_context('spawn')) as pool:
        return pool.submit(function, *args).result()


def environment(device: str) -> dict[str, Any]:
    """What measurements depend on besides the settings: date, hardware, versions."""
    # Compilers, CUDA and GPUs; the seed is a random number, and PyTorch's flags fill a page.
    left_out = ('PyTorch compiling details', 'numpy_random_seed')
    return dict(
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC'),
        hardware=torch.cuda.get_device_name() if device == 'cuda' else cpu_name(),
        threads=torch.get_num_threads(),
        denormals_flushed=denormals_flushed(),
        **versions(),
        **{key: str(value) for key, value in collect_env().items() if key not in left_out},
    )


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that affect what a run computes."""
    return dict(
        python=platform.python_version(),
        torch=torch.__version__,
        mmcv=mmcv.__version__,
        mmengine=mmengine.__version__,
        mmdet=mmdet.__version__,
        mmsmca=__version__,
        numpy=np.__version__,
    )


def machine() -> dict[str, Any]:
    """Processor, cores and GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return dict(cpu=cpu_name(), cores=os.cpu_count(), gpus=gpus)


def cpu_name() -> str:
    """Name of this machine's processor."""
    cpuinfo = Path('/proc/cpuinfo')
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else ():
        if line.startswith('model name'):
            return line.split(':')[1].strip()
    return platform.processor()
