"""Read a study's file, and resolve the configs of its runs. docs/studies.md shows such files."""

import copy
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from mmengine.config import Config
from pydantic import ValidationError

from mmsmca.checks.config import merge_options, walk
from mmsmca.errors import ConfigError

from .budget import fit
from .calibration import calibrated_seconds
from .record import CALIBRATION, Budget, Experiment, Run, Study, StudyError, StudyFile, first_error

ID_DIGITS = 10


def load_study(path: str | Path, world_size: int = 1, calibration: Path | None = None) -> Study:
    """Read a study and resolve the configs of its runs.

    Args:
        path: The study's file: Python, YAML or JSON. Names that begin with an underscore are
            private to it.
        world_size: Number of processes (GPUs) that train a run. Defaults to 1.
        calibration: File with the experiments' time per iteration, for budgets in training time.
            Defaults to None: ``calibration.json`` in ``work_dirs/<name of the study>``. Runs whose
            length it does not give have neither config nor id.
    """
    path = Path(path)
    content = _read(path)
    cfgs = _configs(content.experiments, path)
    seconds: dict[str, float] = {}
    uncalibrated = ''
    if any(budget.time_of for budget in content.budgets):
        digests = {name: digest(cfg) for name, cfg in cfgs.items()}
        file = calibration or Path('work_dirs') / path.stem / CALIBRATION
        seconds, uncalibrated = calibrated_seconds(file, digests)
    runs: dict[tuple[str, ...], Run] = {}
    budgets: list[Budget | None] = [*content.budgets] or [None]
    schedules = [(b, _fitted(cfgs, b, seconds, path) if b else cfgs) for b in budgets]
    for seed in content.seeds:
        for budget, fitted in schedules:
            for name, cfg in fitted.items():
                run = _run(name, seed, cfg, world_size, budget)
                # Budgets that give the same length share one run.
                key = (run.dir, *([] if run.id else run.budgets))
                if key in runs:
                    run.budgets = runs[key].budgets + run.budgets
                runs[key] = run
    return Study(name=path.stem, runs=[*runs.values()], uncalibrated=uncalibrated, **dict(content))


def select(
    study: Study,
    experiments: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    budgets: Sequence[str] | None = None,
) -> list[Run]:
    """The runs of some experiments, seeds and budgets, by default of all."""
    check_names('only', experiments, [experiment.name for experiment in study.experiments])
    check_names('seeds', seeds, study.seeds)
    check_names('budgets', budgets, [budget.name for budget in study.budgets])
    return [
        run
        for run in study.runs
        if (experiments is None or run.experiment in experiments)
        and (seeds is None or run.seed in seeds)
        and (budgets is None or set(budgets) & set(run.budgets))
    ]


def study_configs(path: Path, only: Sequence[str] | None = None) -> dict[str, Config]:
    """Configs of some experiments and of those whose time is a budget, not fitted to any budget."""
    content = _read(path)
    check_names('only', only, [experiment.name for experiment in content.experiments])
    references = [budget.time_of for budget in content.budgets]
    wanted = [e for e in content.experiments if only is None or e.name in [*only, *references]]
    return _configs(wanted, path)


def check_names(option: str, wanted: Sequence | None, known: Sequence) -> None:
    """Refuse the value of an option that the study does not have."""
    for name in wanted or ():
        if name not in known:
            has = ', '.join(map(str, known)) or 'none'
            raise StudyError(f'--{option} {name}: the study has {has}.')


def digest(cfg: Config, **others: object) -> str:
    """Short hash that identifies a resolved config and any further values."""
    canonical = json.dumps({**cfg.to_dict(), **others}, sort_keys=True, default=repr)
    return hashlib.sha256(canonical.encode()).hexdigest()[:ID_DIGITS]


def _read(path: Path) -> StudyFile:
    if not path.is_file():
        raise StudyError(f'{path}: no such file. Studies are in configs/studies.')
    try:
        content = Config.fromfile(path).to_dict()
    except Exception as error:
        raise StudyError(f'{path}: cannot be read as a config: {error}') from error
    content = {key: x for key, x in content.items() if not key.startswith('_')}
    try:
        study = StudyFile.model_validate(content, context=dict(file=path))
    except ValidationError as error:
        raise StudyError(f'{path}: {first_error(error)}.') from error
    names = [experiment.name for experiment in study.experiments]
    references = [('baseline', study.baseline), *(('time_of', b.time_of) for b in study.budgets)]
    for key, name in references:
        if name not in (None, *names):
            raise StudyError(
                f'{path}: {key}: {name!r} is not an experiment of this study ({", ".join(names)}).'
            )
    return study


def _fitted(
    cfgs: dict[str, Config], budget: Budget, seconds: dict[str, float], path: Path
) -> dict[str, Config | None]:
    """Fit the configs to a budget; None where this needs times that are unknown."""
    fitted: dict[str, Config | None] = {}
    for name, cfg in cfgs.items():
        iterations = budget.iterations
        if budget.time_of not in (None, name):
            if not {name, budget.time_of} <= seconds.keys():
                fitted[name] = None
                continue
            iterations = round(iterations * seconds[str(budget.time_of)] / seconds[name])
        fitted[name] = fit(cfg, iterations, f'{path}: {name}')
    return fitted


def _configs(experiments: Sequence[Experiment], path: Path) -> dict[str, Config]:
    files: dict[str, dict] = {}  # Reading a file takes a second, and many experiments share one.
    return {e.name: _resolve(e, files, f'{path}: {e.name}') for e in experiments}


def _resolve(experiment: Experiment, files: dict[str, dict], where: str) -> Config:
    cfg = Config()
    for i, file in enumerate(experiment.configs):
        try:
            if file not in files:
                files[file] = Config.fromfile(file).to_dict()
        except Exception as error:
            raise StudyError(f'{where}: {file} cannot be read: {error}') from error
        try:
            cfg.merge_from_dict(copy.deepcopy(files[file]))
        except (TypeError, KeyError) as error:
            below = ', '.join(experiment.configs[:i])
            raise StudyError(f'{where}: {file} cannot be merged over {below}: {error}') from error
    nodes = {place: node for key in cfg for place, node in walk(cfg[key], key)}
    for key in experiment.cfg_options:
        # A new leaf is legitimate, say an argument that the config leaves at its default.
        parent, _, leaf = key.rpartition('.')
        if not leaf or (parent and not isinstance(nodes.get(parent), (dict, list))):
            raise StudyError(
                f'{where}: cfg_options: {key!r} matches nothing in '
                f'{", ".join(experiment.configs)}. Correct it.'
            )
    try:
        merge_options(cfg, copy.deepcopy(experiment.cfg_options), f'{where}: cfg_options')
    except ConfigError as error:
        raise StudyError(str(error)) from error
    return cfg


def _run(
    experiment: str, seed: int, cfg: Config | None, world_size: int, budget: Budget | None
) -> Run:
    run = Run(experiment=experiment, seed=seed, id='', budgets=[budget.name] if budget else [])
    if cfg is not None:
        run.cfg = Config(cfg.to_dict())
        run.cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
        if run.cfg.get('load_from'):
            run.cfg.load_from = run.cfg.load_from.replace('{seed}', str(seed))
        run.id = digest(run.cfg, **(dict(world_size=world_size) if world_size > 1 else {}))
    return run
