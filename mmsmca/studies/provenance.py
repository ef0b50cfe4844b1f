"""What a run was made with besides versions: revision, hardware."""

import os
import subprocess
from pathlib import Path
from typing import Any

import torch

from mmsmca.engine.timing import cpu_name


def git_revision(folder: Path) -> str | None:
    """The commit that the folder's repository is at, marked when files differ from it."""
    command = ['git', 'describe', '--always', '--dirty', '--abbrev=12', '--match=']
    try:
        return subprocess.run(
            command, cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def hardware() -> dict[str, Any]:
    """Processor, cores and GPUs of this machine."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return dict(cpu=cpu_name(), cores=os.cpu_count(), gpus=gpus)
