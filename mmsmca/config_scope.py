"""``_base_ = 'mmsmca::smca/...'``: a config anywhere inherits one of this package's configs."""

import importlib
from pathlib import Path

from mmengine.config import Config

from .errors import ConfigError


def register() -> None:
    """Make MMEngine resolve ``mmsmca::`` in ``_base_``, and ``mmdet::`` without pkg_resources.

    MMEngine looks for a scope's ``.mim/configs`` with pkg_resources, which warns that it is
    deprecated, takes longer than reading a config, and does not find a checkout. Our bases get
    MMDetection's scope, since its registries have our classes.
    """
    find = Config._get_cfg_path

    def find_in_package(cfg_path: str, filename: str) -> tuple[str, str | None]:
        scope, _, name = cfg_path.partition('::')
        if scope not in ('mmdet', 'mmsmca'):
            return find(cfg_path, filename)
        package = Path(str(importlib.import_module(scope).__file__)).parent
        configs = package / '.mim/configs'
        return str((configs if configs.is_dir() else package.parent / 'configs') / name), 'mmdet'

    Config._get_cfg_path = staticmethod(find_in_package)


def config_path(config: str) -> str:
    """Path of a config, a file or one of a package (``mmdet::dino/...``, ``mmsmca::smca/...``).

    Raises:
        ConfigError: If it does not exist.
    """
    try:
        path = Config._get_cfg_path(config, '')[0]
    except (ImportError, OSError, ValueError):
        path = ''
    if not Path(path).is_file():
        raise ConfigError(
            f'config {config} does not exist. Give the path of a config file or, of '
            "MMDetection's, mmdet::FOLDER/FILE; or use `mim`, which finds mmsmca's configs by "
            'their file name.'
        )
    return path
