"""What a run was made with: revision, versions, hardware."""

import os
import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import torch

from mmsmca.engine.timing import cpu_name

PACKAGES = ('torch', 'mmcv', 'mmcv-lite', 'mmengine', 'mmdet', 'mmdetection', 'mmsmca', 'numpy')


def git_revision(folder: Path) -> str | None:
    """The commit that the folder's repository is at, marked when files differ from it."""
    command = ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--match=']
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide what a run computes."""
    names = {f'{prefix}{name}' for name in PACKAGES for prefix in ('', 'onedl-')}
    found = {
        str(distribution.name): distribution.version
        for distribution in distributions()
        if distribution.name in names
    }
    return dict(python=platform.python_version(), **dict(sorted(found.items())))


def hardware() -> dict[str, Any]:
    """Processor, cores and GPUs of this machine."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return dict(cpu=cpu_name(), cores=os.cpu_count(), gpus=gpus)
