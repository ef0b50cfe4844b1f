"""``_base_ = 'mmsmca::smca/...'``: a config anywhere inherits one of this package's configs."""

from pathlib import Path

from mmengine.config import Config


def register() -> None:
    """Add ``mmsmca::`` to the scopes that MMEngine resolves in ``_base_``.

    MMEngine's own table maps a scope to a distribution whose folder has ``.mim/configs``, which an
    editable installation lacks. The bases keep MMDetection's scope, whose registries have our
    classes.
    """
    find = Config._get_cfg_path

    def find_ours(cfg_path: str, filename: str) -> tuple[str, str | None]:
        scope, _, name = cfg_path.partition('::')
        if scope != 'mmsmca':
            return find(cfg_path, filename)
        package = Path(__file__).parent
        configs = package / '.mim/configs'
        return str((configs if configs.is_dir() else package.parent / 'configs') / name), 'mmdet'

    Config._get_cfg_path = staticmethod(find_ours)
