"""Published results of MMDetection's models and of this package's configs."""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import mmdet
import yaml

from mmsmca.studies.record import StudyError

from .logs import METRICS

MMDET = 'mmdet::'
MMDET_SOURCE = "MMDetection's model zoo"


@dataclass(frozen=True)
class Published:
    """A published result, on COCO val2017.

    Attributes:
        name: Name of the model.
        metrics: Published metrics by the names of ``METRICS``, between 0 and 1.
        epochs: Training length in epochs; None if it is not given.
        source: Who published it.
    """

    name: str
    metrics: dict[str, float]
    epochs: int | None
    source: str


def find_published(reference: str) -> Published | None:
    """Find the published result of a config.

    Args:
        reference: MMDetection's config, as in ``mmdet::detr/detr_r50_8xb2-150e_coco.py``, or one of
            ours, as in ``smca/smca_r50_8xb2-50e_coco.py``, whose folder is ignored.

    Returns:
        The result; None if the metafile lists the config without one.

    Raises:
        StudyError: If there is no such config.
    """
    config = reference.removeprefix(MMDET)
    if config != reference:
        rows = _read(Path(mmdet.__path__[0], '.mim/configs', config).with_name('metafile.yml'))
    else:
        # In a wheel, or in a checkout.
        package = Path(__file__).parents[2]
        wheel = package / '.mim/configs'
        configs = wheel if wheel.is_dir() else package.parent / 'configs'
        rows = [row for path in sorted(configs.glob('smca*/metafile.yml')) for row in _read(path)]
    for row in rows:
        if f'configs/{config}' != row.get('Config') and row['Name'] != Path(config).stem:
            continue
        if 'Results' not in row:
            return None
        found, metadata = row['Results'][0]['Metrics'], row.get('Metadata', {})
        metrics = {name: found[f'box {name}'] / 100 for name in METRICS if f'box {name}' in found}
        source = metadata.get('Box AP Source', MMDET_SOURCE)
        return Published(row['Name'], metrics, metadata.get('Epochs'), source)
    raise StudyError(
        f"published '{reference}' is not a config of any metafile: correct it in the study's file"
    )


@lru_cache
def _read(path: Path) -> list[dict]:
    return yaml.safe_load(path.read_text())['Models'] if path.is_file() else []
