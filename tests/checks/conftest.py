"""The config of ``configs/small`` on data that are written anew for every test."""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from mmengine.config import Config
from runs import assert_names, on_data, write_data
from utils import load_config

from mmsmca.checks.preflight import check_config


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_data(tmp_path / 'data')


@pytest.fixture(scope='module')
def shapes_config() -> Config:
    return load_config('small/smca_r18w16_1xb8-11e_shapes128.py')


@pytest.fixture
def cfg(shapes_config: Config, root: Path) -> Config:
    """The shapes config on the data in ``root``."""
    return on_data(shapes_config, root)


@pytest.fixture
def untouched(tmp_path: Path) -> Callable:
    """A context after which all that lies in the folder is the same, to the byte."""

    def content() -> dict[Path, str]:
        return {
            path: hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ''
            for path in tmp_path.rglob('*')
        }

    @contextmanager
    def unchanged() -> Iterator[None]:
        before = content()
        yield
        assert content() == before

    return unchanged


@pytest.fixture
def refused(cfg: Config, untouched: Callable) -> Callable:
    """Asserts that the config is refused with one line that has all the words, leaving no trace."""

    def refuse(
        kind: type[Exception], phases: str, *words: object, check: Callable = check_config
    ) -> None:
        with untouched(), pytest.raises(kind) as caught:
            check(cfg, phases.split() if check is check_config else phases)
        assert '\n' not in str(caught.value)
        assert_names(str(caught.value), *words)

    return refuse
