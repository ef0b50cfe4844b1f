"""Time per iteration of each experiment, measured in isolation, for budgets in training time."""

import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmsmca.engine.step_time import step_seconds, train_loader
from mmsmca.engine.timing import in_own_process, machine, versions
from mmsmca.files import read_json, write_json

from .record import StudyError

WARM_UP = 5
TIMED = 30
# Load of other programs, in cores, above which they distort the measurements.
BUSY_CORES = 0.3


def conditions() -> dict[str, Any]:
    """Hardware, threads and versions, which affect times per iteration besides the config."""
    return dict(hardware=machine(), threads=os.environ.get('OMP_NUM_THREADS'), versions=versions())


def calibrate(
    cfgs: dict[str, Config], digests: dict[str, str], path: Path
) -> Iterator[tuple[str, float]]:
    """Measure the experiments one after the other and write the results.

    Each experiment runs in its own process, with as many threads as ``OMP_NUM_THREADS`` gives a run
    of the sweep. Results already in the file are kept if they were measured under the same
    conditions with the same config.

    Args:
        cfgs: Resolved configs by experiment name.
        digests: Digests of these configs by experiment name.
        path: File to write after every experiment.

    Yields:
        Name and median seconds per iteration of each experiment, as soon as they are known.
    """
    content: dict[str, Any] = dict(conditions(), iterations=TIMED, experiments={})
    if path.exists():
        before = _read(path)
        if all(before.get(key) == content[key] for key in content if key != 'experiments'):
            content['experiments'] = before['experiments']
    for name, cfg in cfgs.items():
        known = content['experiments'].get(name)
        if known is None or known['config'] != digests[name]:
            seconds = in_own_process(_step_seconds, cfg, TIMED)
            lower, median, upper = statistics.quantiles(seconds, n=4)
            content['experiments'][name] = known = dict(
                config=digests[name], seconds=median, quartiles=[lower, upper]
            )
            write_json(path, content)
        yield name, known['seconds']


def calibrated_seconds(path: Path, digests: dict[str, str], remedy: str) -> dict[str, float]:
    """Seconds per iteration of the experiments, as measured under the current conditions.

    Args:
        path: File that :func:`calibrate` wrote.
        digests: Digests of the resolved configs by experiment name.
        remedy: Calibration command, for error messages.

    Raises:
        StudyError: If the file is missing, was measured on other hardware or with other threads or
            versions, or lacks an experiment with its current config.
    """
    if not path.is_file():
        raise StudyError(
            f'{path}: no such file. A budget in training time needs the time per iteration of '
            f'every experiment, measured while nothing else runs: {remedy}'
        )
    content = _read(path)
    for key, here in conditions().items():
        if (there := content.get(key)) != here:
            raise StudyError(
                f'{path}: measured with different {key}: {there}, but {here} here. Calibrate '
                f'again: {remedy}'
            )
    measured = content['experiments']
    for name, digest in digests.items():
        if name not in measured:
            raise StudyError(f'{path}: experiment {name!r} has not been measured: {remedy}')
        if measured[name]['config'] != digest:
            raise StudyError(
                f'{path}: the config of experiment {name!r} has changed since it was measured: '
                f'{remedy}'
            )
    return {name: measured[name]['seconds'] for name in digests}


def busy_warning() -> str | None:
    """Warning if other programs keep this machine busy, else None."""
    load = os.getloadavg()[0]
    if load <= BUSY_CORES:
        return None
    return (
        f'Other programs keep {load:.1f} cores busy (load of the last minute): this distorts '
        'the times. Calibrate again when nothing else runs.'
    )


def _step_seconds(cfg: Config, timed: int) -> list[float]:
    return step_seconds(cfg, train_loader(cfg), timed, WARM_UP)


def _read(path: Path) -> dict[str, Any]:
    content = read_json(path)
    if content is None or not isinstance(content.get('experiments'), dict):
        raise StudyError(f'{path}: cannot be read. Remove it and calibrate again.')
    return content
