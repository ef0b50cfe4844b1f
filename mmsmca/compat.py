"""Check the versions of PyTorch and OpenMMLab before anything else imports them."""

import importlib
import io
import logging
import warnings
from contextlib import redirect_stdout

from packaging.specifiers import SpecifierSet

SUPPORTED_VERSIONS = {
    # Before 2.6, reading a checkpoint with weights_only=True could execute code in it.
    'torch': SpecifierSet('>=2.6,<3', prereleases=True),
    'mmengine': SpecifierSet('>=0.10.4,<1', prereleases=True),
    'mmcv': SpecifierSet('>=2.0.0rc4,<3', prereleases=True),
    'mmdet': SpecifierSet('>=3.3,<4', prereleases=True),
}
REMEDY = "pip install 'mmsmca[lite]' installs versions that work together"


def check_openmmlab() -> None:
    """Check that torch, mmengine, mmcv and mmdet can be imported in supported versions.

    The versions are read from the modules, since each OpenMMLab module is provided by two
    distributions (``onedl-mmdetection`` and ``mmdet``, for example).

    Raises:
        ImportError: If one cannot. The message is one line: the module, and what to install.
    """
    for name, supported in SUPPORTED_VERSIONS.items():
        try:
            version = importlib.import_module(name).__version__
        # mmdet 3.3 asserts the versions of mmcv and mmengine.
        except (ImportError, AssertionError) as error:
            reason = ' '.join(str(error).split())
            raise ImportError(
                f'mmsmca needs {name}{supported}, which cannot be imported ({reason}): {REMEDY}'
            ) from None
        if version not in supported:
            raise ImportError(f'mmsmca needs {name}{supported}, found {version}: {REMEDY}')


def import_quietly() -> None:
    """Import the parts of MMDetection that report missing optional packages, without the reports.

    At every import, onedl-mmdetection prints that OneDL is missing, warns that faster-coco-eval is
    (:mod:`mmsmca.engine.coco_metric` works without), and logs that a lane detector's operator is.
    """
    from mmengine.logging import MMLogger

    def concerns_us(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith('Line NMS is not compiled')

    logger = MMLogger.get_current_instance()
    logger.addFilter(concerns_us)
    with redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.filterwarnings('ignore', message='faster_coco_eval is not installed')
        for name in 'datasets', 'evaluation', 'models':
            importlib.import_module(f'mmdet.{name}')
    logger.removeFilter(concerns_us)
