"""All images of data sets, loaded before a run."""

import os
import re
import tempfile
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import IO

from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from mmsmca.errors import DataError, Fault, listed_below

from .data import Used

# What libjpeg says of data that it skips.
DAMAGE = re.compile(r'(Corrupt|Premature end of) JPEG [^\n]*')


def image_faults(datasets: Sequence[Used]) -> Iterator[Fault]:
    """Load all images of data sets, in as many processes as there are cores.

    Args:
        datasets: Data sets whose pipelines were built inside :func:`.load_image.naming_images`.

    Yields:
        What :class:`.load_image.LoadImage` says, and what libjpeg says of damaged data, once for
        all images of which the same is said. Missing images are left out.
    """
    images = _Images(datasets)
    loader = DataLoader(images, batch_size=None, num_workers=os.cpu_count() or 0)
    alike: dict[tuple[type[Fault], str], list[str]] = defaultdict(list)
    console = Console(stderr=True)
    for path, fault in track(loader, 'images', total=len(images), console=console):
        if fault:
            alike[type(fault), str(fault).replace(path, '\0')].append(path)
    for (kind, message), (first, *others) in alike.items():
        likewise = ' The same holds for:' if others else ''
        yield kind(message.replace('\0', first) + likewise + listed_below(others))


class _Images(Dataset):
    """Paths of the images of data sets, each once, with what is said when they are loaded."""

    def __init__(self, datasets: Sequence[Used]) -> None:
        self.images = list({one.path(i): (one, i) for one in datasets for i in one.ids}.items())

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[str, Fault | None]:
        path, (one, image_id) = self.images[index]
        image = one.file.images[image_id]
        if not os.path.lexists(path):
            return path, None
        with warnings.catch_warnings(record=True) as said, _decoder_output() as output:
            warnings.simplefilter('ignore')
            warnings.simplefilter('always', UserWarning)
            try:
                one.dataset.pipeline(dict(img_path=path, height=image.height, width=image.width))
            except DataError as error:
                return path, DataError(str(error))
            output.seek(0)
            damage = DAMAGE.search(output.read().decode(errors='replace'))
        if damage:
            return path, UserWarning(
                f'image {path} is probably damaged ({damage[0]}). Look at it, and restore the file.'
            )
        return path, UserWarning(str(said[0].message)) if said else None


@contextmanager
def _decoder_output() -> Iterator[IO[bytes]]:
    """Send to a file what compiled code writes to stderr, such as the warnings of libjpeg."""
    with tempfile.TemporaryFile() as file:
        stderr = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)
