"""The config of ``configs/small`` on data that are written anew for every test."""

from pathlib import Path

import pytest
from mmengine.config import Config
from runs import on_data, write_data
from utils import load_config


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
