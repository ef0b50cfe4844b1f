"""Files that are complete whenever they exist."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

# Suffix of a file that is being written; no user's file has it.
PARTIAL = '.mmsmca.partial'


def check_destination(path: str | Path, overwrite: bool | None = None) -> None:
    """Refuse a destination that cannot be written, before any work is done.

    Args:
        path: File to write.
        overwrite: Whether the file may exist, from the tool's ``--overwrite``. Defaults to None,
            for tools without that option: it must not exist.

    Raises:
        UserError: If ``path`` is a folder, exists although it must not, or its folder does not.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        remedy = '' if overwrite is None else ', or pass --overwrite to replace it'
        raise UserError(f'{path} exists: delete it or choose another destination{remedy}')
    if not path.parent.is_dir():
        raise UserError(f'{path.parent} is not a folder: create it first')


@contextmanager
def atomic_write(path: str | Path, sync: bool = False) -> Iterator[Path]:
    """Write a file beside its destination first, and rename it when it is complete.

    Args:
        path: Destination, replaced if it exists. Its folder must exist.
        sync: Whether to flush the content to disk before renaming, so that either the old or the
            new file survives a power failure. Defaults to False.

    Yields:
        The path to write to: ``path`` with ``PARTIAL`` appended. It is removed after an exception,
        but a killed process leaves it behind.
    """
    path = Path(path)
    partial = path.with_name(path.name + PARTIAL)
    try:
        yield partial
        if sync:
            with open(partial, 'r+b') as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def exclusive_lock(path: str | Path) -> Iterator[None]:
    """Be the only process that writes a folder.

    Args:
        path: Folder that exists, which may be renamed meanwhile, or a file in it, which is created
            if it is missing. NFS can lock files only.

    Raises:
        UserError: If another process is writing it.
    """
    import fcntl  # Not available on Windows.

    held = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT)
    try:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(
                f'another process is writing {path}: wait until it has ended'
            ) from error
        yield
    finally:
        os.close(held)


def write_json(path: str | Path, rows: Sequence[dict] | dict) -> None:
    """Write rows, or one object, to a JSON file, whole or not at all; create its folder."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path, sync=True) as partial:
        partial.write_text(json.dumps(rows, indent=2) + '\n')


def read_json(path: str | Path) -> dict | None:
    """Read the object in a JSON file; None if the file is missing or does not hold one."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
