"""Writing that stays inside a folder, whatever path it is meant for."""

import builtins
import io
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import cv2
import torch

WRITE = os.O_WRONLY | os.O_RDWR | os.O_CREAT


@contextmanager
def writing_inside(folder: str) -> Iterator[None]:
    """Leave all files outside a folder as they are, without an error for the code that writes.

    What Python code, OpenCV and ``torch.save`` write elsewhere goes to a copy of the file tree
    inside the folder, and is read from there. Other compiled code is not redirected.

    Args:
        folder: An existing folder.
    """
    root = os.path.realpath(folder) + os.sep
    lexists, makedirs, copyfile = os.path.lexists, os.makedirs, shutil.copyfile

    def redirected(path: Any) -> Any:
        """Where a path lies inside the folder; file descriptors and devices are returned as is."""
        if not isinstance(path, (str, bytes, os.PathLike)):
            return path
        name = os.fsdecode(path)
        absolute = os.path.join(os.path.realpath(os.path.dirname(name)), os.path.basename(name))
        if absolute.startswith((root, '/dev/')) or absolute == os.devnull:
            return path
        return os.path.join(root, 'outside', os.path.splitdrive(absolute)[1].lstrip(os.sep))

    def to_read(path: Any) -> Any:
        copied = redirected(path)
        return copied if isinstance(copied, str) and lexists(copied) else path

    def to_write(path: Any) -> Any:
        copied = redirected(path)
        if copied is not path:
            makedirs(os.path.dirname(copied), exist_ok=True)
        return copied

    def to_change(path: Any) -> Any:
        copied = to_write(path)
        if copied is not path and os.path.isfile(path) and not lexists(copied):
            copyfile(path, copied)
        return copied

    def opening(real: Callable) -> Callable:
        def opened(file: Any, mode: str = 'r', *args: Any, **kwargs: Any) -> Any:
            change = to_change if set(mode) & set('a+') else to_write
            return real(
                (change if set(mode) & set('wax+') else to_read)(file), mode, *args, **kwargs
            )

        return opened

    def opening_descriptor(real: Callable) -> Callable:
        def opened(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
            return real((to_change if flags & WRITE else to_read)(path), flags, *args, **kwargs)

        return opened

    def removing(real: Callable) -> Callable:
        def removed(path: Any, *args: Any, **kwargs: Any) -> None:
            # Below a folder that is given by a descriptor, `rmtree` has come that far.
            if kwargs.get('dir_fd') is not None or redirected(path) is path:
                real(path, *args, **kwargs)
            elif lexists(redirected(path)):
                real(redirected(path), *args, **kwargs)

        return removed

    def moving(real: Callable) -> Callable:
        return lambda source, target, **kwargs: real(to_change(source), to_write(target), **kwargs)

    def writing(real: Callable) -> Callable:
        return lambda path, *args, **kwargs: real(to_write(path), *args, **kwargs)

    def looking(real: Callable) -> Callable:
        return lambda path, *args, **kwargs: real(to_read(path), *args, **kwargs)

    def saving(real: Callable) -> Callable:
        return lambda obj, f, *args, **kwargs: real(obj, to_write(f), *args, **kwargs)

    replaced = [
        (builtins, 'open', opening), (io, 'open', opening), (os, 'open', opening_descriptor),
        (os, 'mkdir', writing), (os, 'chmod', writing), (os, 'utime', writing),
        (os, 'remove', removing), (os, 'unlink', removing), (os, 'rmdir', removing),
        (shutil, 'rmtree', removing), (os, 'rename', moving), (os, 'replace', moving),
        (os, 'stat', looking), (cv2, 'imwrite', writing), (torch, 'save', saving),
    ]  # fmt: skip
    with ExitStack() as stack:
        for module, name, wrapped in replaced:
            stack.enter_context(patch.object(module, name, wrapped(getattr(module, name))))
        yield
