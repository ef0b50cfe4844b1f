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

WARM_UP = 5
TIMED = 30


def conditions() -> dict[str, Any]:
    """Hardware, threads and versions, which affect times per iteration besides the config."""
    return dict(hardware=machine(), threads=os.environ.get('OMP_NUM_THREADS'), versions=versions())


def calibrate(
    cfgs: dict[str, Config], digests: dict[str, str], path: Path
) -> Iterator[tuple[str, float]]:
    """Measure the experiments one after the other, each in a process with a run's threads.

    Yields the name and median seconds per iteration of each as soon as they are known and written.
    Results already in the file are kept if conditions and config are the same.
    """
    content: dict[str, Any] = dict(conditions(), iterations=TIMED, experiments={})
    before = read_json(path) or {}
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


def calibrated_seconds(path: Path, digests: dict[str, str]) -> tuple[dict[str, float], str]:
    """Seconds per iteration of experiments, by name, and why some are missing: '' if none are."""
    if not path.exists():
        return {}, (
            f'{path}: no such file. A budget in training time needs the time per iteration of '
            'every experiment'
        )
    content = read_json(path) or {}
    measured = content.get('experiments')
    if not isinstance(measured, dict):
        return {}, f'{path} cannot be read: remove it'
    for key, here in conditions().items():
        if (there := content.get(key)) != here:
            return {}, f'{path}: measured with different {key}: {there}, but {here} here'
    seconds = {
        name: measured[name]['seconds']
        for name, digest in digests.items()
        if name in measured and measured[name]['config'] == digest
    }
    if not (missing := ', '.join(name for name in digests if name not in seconds)):
        return seconds, ''
    return seconds, f'{path} lacks experiments, or has them with another config: {missing}'


def _step_seconds(cfg: Config, timed: int) -> list[float]:
    return step_seconds(cfg, train_loader(cfg), timed, WARM_UP)
