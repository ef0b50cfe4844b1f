"""Files that are complete whenever they are there."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_whole(path: str | Path, sync: bool = False) -> Iterator[Path]:
    """Write a file beside its destination first, and rename it when it is complete.

    Args:
        path: Destination, replaced if it exists. Its folder has to be there.
        sync: Whether the content has to be on the disk before the file is renamed, so that a
            machine that loses its power leaves the old file or the new one. Defaults to False.

    Yields:
        The path to write to: ``path`` with ``.partial`` appended. It is removed after an exception;
        a killed process leaves it.
    """
    path = Path(path)
    partial = path.with_name(f'{path.name}.partial')
    try:
        yield partial
        if sync:
            with open(partial, 'r+b') as file:
                os.fsync(file.fileno())
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
