"""Checkpoint files, which are read without executing code and written whole or not at all."""

import argparse
import io
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from mmengine.utils import apply_to
from torch import Tensor

from mmsmca import files
from mmsmca.checkpoints import safe_globals
from mmsmca.errors import ConfigError
from mmsmca.files import atomic_write
from mmsmca.version import __version__

SUFFIXES = ('.pth', '.safetensors')


class CheckpointError(ConfigError):
    """A checkpoint that cannot be read, converted or written; the message says why."""


def read(path: str | Path) -> dict:
    """Read what ``torch.save`` wrote, without executing code in it; tensors may stay on disk.

    Raises:
        CheckpointError: If the file is missing, not a checkpoint, or holds more than data.
    """
    _check_file(Path(path))
    # Register again: onedl-mmengine removes its safe classes from PyTorch's list after each load.
    safe_globals.register()
    try:
        # The training scripts of DETR and its successors store their arguments with the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            checkpoint = torch.load(  # noqa: TID251
                path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path)
            )
    except Exception as error:  # the unpickler may raise anything on other files
        unsafe = re.search(r'Unsupported global: GLOBAL (\S+)', str(error))
        raise CheckpointError(
            f'checkpoint {path} holds a {unsafe[1]}: code is never executed, only data is read. '
            "Save its weights alone: torch.save({'state_dict': ...}, file)."
            if unsafe
            else f'checkpoint {path} cannot be read: it is truncated, is not a PyTorch checkpoint, '
            f'or holds code, which is never executed ({type(error).__name__}). Copy it again, or '
            'specify another.'
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(
            f'checkpoint {path} holds a {type(checkpoint).__name__}, not the weights of a model. '
            'Specify a checkpoint that training wrote to its work directory.'
        )
    return checkpoint


def check_readable(content: Any, key: str = 'checkpoint') -> None:
    """Check that :func:`read` will be able to read what a run is about to save.

    Raises:
        CheckpointError: If it holds more than data; the message names the key.
    """
    buffer = io.BytesIO()
    try:
        torch.save(apply_to(content, torch.is_tensor, lambda x: x.new_empty(0)), buffer)
        buffer.seek(0)
        safe_globals.register()
        torch.load(buffer, weights_only=True)  # noqa: TID251
    except Exception as error:  # as in `read`, and whatever pickling may raise
        parts = content.items() if isinstance(content, Mapping) else ()
        for name, part in enumerate(content) if isinstance(content, (list, tuple)) else parts:
            check_readable(part, f'{key}.{name}')
        raise CheckpointError(
            f'{key}: the run would save a {type(content).__name__} there, with which the file '
            'cannot be read without executing code. Use numbers, text or tensors instead.'
        ) from error


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, without the prefix of DistributedDataParallel.

    Args:
        path: A ``.pth`` file with the tensors under ``model`` (as written by the code of DETR,
            Deformable DETR and SMCA), under ``state_dict`` (MMEngine) or at the top level; or a
            ``.safetensors`` file.

    Raises:
        CheckpointError: If the file is of another kind, refused by :func:`read`, or has no tensors.
    """
    path = Path(path)
    _check_suffix(path)
    if path.suffix == '.safetensors':
        _check_file(path)
        try:
            checkpoint = safetensors.torch.load_file(path)
        except Exception as error:  # also a ValueError on bytes that are no header
            raise CheckpointError(
                f'checkpoint {path} cannot be read: it is truncated or not a safetensors file '
                f'({error}). Copy it again, or specify another.'
            ) from error
    else:
        checkpoint = read(path)
    state_dict = checkpoint.get('model', checkpoint.get('state_dict', checkpoint))
    if (
        not isinstance(state_dict, Mapping)
        or not state_dict
        or not all(isinstance(name, str) for name in state_dict)
        or not all(isinstance(value, Tensor) for value in state_dict.values())
    ):
        raise CheckpointError(
            f'{path} holds no named tensors under "model", under "state_dict" or at the top level: '
            'it is not a checkpoint of a model'
        )
    # DistributedDataParallel adds this prefix.
    wrapped = all(name.startswith('module.') for name in state_dict)
    return {name.removeprefix('module.') if wrapped else name: x for name, x in state_dict.items()}


def check_destination(path: str | Path) -> None:
    """Check a destination as :func:`mmsmca.files.check_destination` does, and its suffix."""
    _check_suffix(Path(path))
    files.check_destination(path)


def write(state_dict: Mapping[str, Tensor], path: str | Path, key: str = 'state_dict') -> None:
    """Write tensors to a ``.pth`` file, there under ``key``, or to a ``.safetensors`` file.

    Raises:
        CheckpointError: If ``path`` is refused by :func:`check_destination`, or cannot be written.
    """
    path = Path(path)
    check_destination(path)
    try:
        with atomic_write(path) as partial:
            if path.suffix == '.safetensors':
                # The format does not support tensors that share memory.
                tensors = {name: tensor.clone().contiguous() for name, tensor in state_dict.items()}
                safetensors.torch.save_file(tensors, partial, metadata=dict(format='pt'))
            else:
                meta = dict(mmsmca_version=__version__)
                torch.save({'meta': meta, key: dict(state_dict)}, partial)
    # PyTorch reports a full disk as a RuntimeError.
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise CheckpointError(f'{path} cannot be written: {error}') from error


def _check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise CheckpointError(
            f'{path}: files of kind "{path.suffix}" are neither read nor written, only '
            f'{" and ".join(SUFFIXES)}'
        )


def _check_file(path: Path) -> None:
    if not path.is_file():
        what = 'is a folder' if path.is_dir() else 'does not exist'
        raise CheckpointError(
            f'checkpoint {path.absolute()} {what}. Give the path of a checkpoint that '
            'training wrote to its work directory.'
        )
