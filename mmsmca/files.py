"""Files that are complete whenever they exist."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import UserError

# Ends the name of a file that is being written. No file of a user has such a name.
PARTIAL = '.mmsmca.partial'


def check_destination(path: str | Path, overwrite: bool | None = None) -> None:
    """Refuse a destination that cannot be written, before any work is done.

    Args:
        path: File to write.
        overwrite: Whether it may exist: the tool's ``--overwrite``. Defaults to None: it may not,
            and the tool has no such option.

    Raises:
        UserError: If it is a folder, exists although it must not, or lies in a missing folder.
    """
    path = Path(path)
    if path.is_dir() or (path.exists() and not overwrite):
        remedy = '' if overwrite is None else ', or replace this one by --overwrite'
        raise UserError(f'{path} exists: delete it or name another destination{remedy}')
    if not path.parent.is_dir():
        raise UserError(f'{path.parent} is no folder: create it first')


@contextmanager
def written_whole(path: str | Path, sync: bool = False) -> Iterator[Path]:
    """Write a file beside its destination first, and rename it when it is complete.

    Args:
        path: Destination, replaced if it exists. Its folder has to be there.
        sync: Whether the content has to be on the disk before the file is renamed, so that the old
            or the new file survives a power failure. Defaults to False.

    Yields:
        The path to write to: ``path`` with ``PARTIAL`` appended. It is removed after an exception,
        but a killed process leaves it.
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


def write_json(path: str | Path, rows: Sequence[dict] | dict) -> None:
    """Write rows, or one object, to a JSON file, whole or not at all; its folder is made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(path, sync=True) as partial:
        partial.write_text(json.dumps(rows, indent=2) + '\n')


def read_json(path: str | Path) -> dict | None:
    """The object in a JSON file; None if there is no such file, or it holds none."""
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
