"""Studies: named experiments, seeds and a baseline in one small config file.

A study is an MMEngine config::

    baseline = 'detr'
    seeds = [0, 1, 2]
    experiments = [
        dict(name='detr', config='../small/detr_r18w16_1xb4-3ki_shapes192.py'),
        dict(name='smca', config='../small/smca_r18w16_1xb4-3ki_shapes192.py',
             cfg_options={'model.num_queries': 50}),
    ]

``config`` is a path relative to the study's file, or a package's config (``'mmdet::detr/...'``). It
may be a list of files: the first is a complete config, for example of a detector; each later one,
for example a data set, is merged over it as MMEngine merges a config over its ``_base_``.
``cfg_options`` are merged last. ``published`` may name a config (``'mmdet::detr/...'`` or
``'smca/...'``) whose published results are shown beside the experiment's. Two more keys are
optional: every experiment is trained with each of the ``budgets``, its whole schedule fitted to it;
``chosen`` says in the report what was chosen on which data::

    budgets = [dict(iterations=1500), dict(iterations=1500, time_of='detr')]
    chosen = 'The recipe was chosen on the split tune.'
"""

import copy
import hashlib
import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from mmengine.config import Config

from mmsmca.checks.keys import walk
from mmsmca.checks.preflight import merge_options
from mmsmca.errors import ConfigError

from .budget import fit, read_budgets
from .calibration import calibrated_seconds
from .record import CALIBRATION, Budget, Experiment, Run, Study, StudyError

REQUIRED_KEYS = {'baseline', 'seeds', 'experiments'}
STUDY_KEYS = REQUIRED_KEYS | {'budgets', 'chosen'}
EXPERIMENT_KEYS = {'name', 'config', 'cfg_options', 'published'}
# Names become folder names.
NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._-]*')
ID_DIGITS = 10


def load_study(
    path: str | Path,
    world_size: int = 1,
    calibration: Path | None = None,
    wanted: Sequence[str] | None = None,
    uncalibrated: bool = False,
    only: Sequence[str] | None = None,
) -> Study:
    """Read a study and resolve the configs of its runs.

    Args:
        path: The study's file: Python, YAML or JSON. Names that begin with an underscore are
            private to it.
        world_size: Number of processes (GPUs) that train a run. Defaults to 1.
        calibration: File with the experiments' time per iteration, for budgets in training time.
            Defaults to None: ``calibration.json`` in ``work_dirs/<name of the study>``.
        wanted: Names of the budgets to train; a calibration that none of them needs may be missing.
            Defaults to None: all.
        uncalibrated: Whether the calibration may be missing, to show the plan. Runs whose length
            depends on it then have neither config nor id. Defaults to False.
        only: Names of the experiments to train. Others may be missing in the calibration; their
            runs of unknown length have neither config nor id. Defaults to None: all.

    Returns:
        The study.

    Raises:
        StudyError: If a key is missing, unknown or has a wrong value, two experiments share a name,
            a config is missing or lacks what ``cfg_options`` changes, a budget is too small, or the
            calibration that a budget needs is missing or does not match.
    """
    path = Path(path)
    content = _read(path)
    experiments = _experiments(content['experiments'], path)
    names = [experiment.name for experiment in experiments]
    if content['baseline'] not in names:
        raise StudyError(
            f'{path}: baseline: {content["baseline"]!r} is not an experiment of this study '
            f'({", ".join(names)}).'
        )
    seeds = _seeds(content['seeds'], path)
    chosen = content.get('chosen', '')
    if not isinstance(chosen, str):
        raise StudyError(
            f'{path}: chosen: {chosen!r} is not a sentence on what was chosen and how.'
        )
    budgets = _budgets(content, names, path)
    cfgs = _configs(experiments, path)
    seconds: dict[str, float] = {}
    if any(budget.time_of for budget in budgets):
        digests = {name: digest(cfgs[name]) for name in _timed(names, budgets, only)}
        file = calibration or Path('work_dirs') / path.stem / CALIBRATION
        try:
            selected = f' --only {" ".join(only)}' if only else ''
            remedy = f'python tools/sweep.py {path} --calibrate{selected}'
            seconds = calibrated_seconds(file, digests, remedy)
        except StudyError:
            needed = any(b.time_of and (wanted is None or b.name in wanted) for b in budgets)
            if needed and not uncalibrated:
                raise
    schedules: list[tuple[Budget | None, Mapping[str, Config | None]]] = [
        (budget, _fitted(cfgs, budget, seconds, path)) for budget in budgets
    ]
    runs: dict[tuple[str, ...], Run] = {}
    for seed in seeds:
        for budget, fitted in schedules or [(None, cfgs)]:
            for name, cfg in fitted.items():
                run = _run(name, seed, cfg, world_size, budget)
                # Budgets that give the same length share one run.
                key = (run.dir, *([] if run.id else run.budgets))
                if key in runs:
                    run = replace(run, budgets=runs[key].budgets + run.budgets)
                runs[key] = run
    return Study(
        path.stem, content['baseline'], experiments, seeds, budgets, chosen, [*runs.values()]
    )


def study_configs(path: str | Path, only: Sequence[str] | None = None) -> dict[str, Config]:
    """Resolve the configs of a study's experiments, not fitted to any budget.

    Args:
        path: The study's file.
        only: Names of experiments; those whose training time is a budget are added. Defaults to
            None: all.

    Raises:
        StudyError: As in :func:`load_study`, or if the study has no such experiment.
    """
    path = Path(path)
    content = _read(path)
    experiments = _experiments(content['experiments'], path)
    names = [experiment.name for experiment in experiments]
    check_names('only', only, names)
    budgets = _budgets(content, names, path)
    timed = _timed(names, budgets, only)
    return _configs([e for e in experiments if e.name in timed], path)


def check_names(option: str, wanted: Sequence | None, known: Sequence) -> None:
    """Check what an option selects of a study.

    Args:
        option: Name of the option, without dashes.
        wanted: What it selects; None for all.
        known: What the study has.

    Raises:
        StudyError: If the study lacks any of it.
    """
    for name in wanted or ():
        if name not in known:
            has = ', '.join(map(str, known)) or 'none'
            raise StudyError(f'--{option} {name}: the study has {has}.')


def _timed(names: list[str], budgets: list[Budget], only: Sequence[str] | None) -> list[str]:
    """Experiments that need a time per iteration: the selected, and those of budgets in time."""
    references = [budget.time_of for budget in budgets]
    return [name for name in names if only is None or name in only or name in references]


def digest(cfg: Config, **others: object) -> str:
    """Short hash that identifies a resolved config and any further values."""
    canonical = json.dumps({**cfg.to_dict(), **others}, sort_keys=True, default=repr)
    return hashlib.sha256(canonical.encode()).hexdigest()[:ID_DIGITS]


def _fitted(
    cfgs: dict[str, Config], budget: Budget, seconds: dict[str, float], path: Path
) -> dict[str, Config | None]:
    """Fit the configs to a budget; None where this needs times that are unknown."""
    fitted: dict[str, Config | None] = dict.fromkeys(cfgs)
    for name, cfg in cfgs.items():
        iterations = budget.iterations
        if budget.time_of not in (None, name):
            if name not in seconds:
                continue
            iterations = round(iterations * seconds[str(budget.time_of)] / seconds[name])
        fitted[name] = fit(cfg, iterations, f'{path}: {name}')
    return fitted


def _read(path: Path) -> dict:
    if not path.is_file():
        raise StudyError(f'{path}: no such file. Studies are in configs/studies.')
    try:
        content = Config.fromfile(path).to_dict()
    except Exception as error:
        raise StudyError(f'{path}: cannot be read as a config: {error}') from error
    content = {key: x for key, x in content.items() if not key.startswith('_')}
    _check_keys(content, STUDY_KEYS, REQUIRED_KEYS, str(path))
    return content


def _check_keys(content: dict, known: set[str], required: set[str], where: str) -> None:
    for key in content:
        if key not in known:
            raise StudyError(f'{where}: unknown key {key!r}. Known: {", ".join(sorted(known))}.')
    for key in sorted(required - content.keys()):
        raise StudyError(f'{where}: key {key!r} is missing.')


def _experiments(entries: object, path: Path) -> list[Experiment]:
    if not isinstance(entries, list) or not entries:
        raise StudyError(f'{path}: experiments: give a list of at least one experiment.')
    experiments: dict[str, Experiment] = {}
    for i, entry in enumerate(entries):
        where = f'{path}: experiments[{i}]'
        if not isinstance(entry, dict):
            raise StudyError(f'{where}: {entry!r} is not a dict with name and config.')
        _check_keys(entry, EXPERIMENT_KEYS, {'name', 'config'}, where)
        name = entry['name']
        if not isinstance(name, str) or not NAME.fullmatch(name):
            raise StudyError(
                f'{where}: name: {name!r} must start with a letter or digit and consist of '
                "letters, digits, '.', '_' and '-': it becomes a folder name."
            )
        if name in experiments:
            raise StudyError(f'{path}: two experiments are named {name!r}. Rename one.')
        where = f'{where} ({name})'
        files = entry['config'] if isinstance(entry['config'], list) else [entry['config']]
        configs = [_config_path(str(file), path) for file in files]
        if not configs:
            raise StudyError(f'{where}: config: give a file, or a list of files.')
        for config in configs:
            if not os.path.isfile(config):
                raise StudyError(
                    f'{where}: config: {config} does not exist. The path is relative to the study.'
                )
        cfg_options, published = entry.get('cfg_options', {}), entry.get('published')
        if not isinstance(cfg_options, dict):
            raise StudyError(f'{where}: cfg_options: {cfg_options!r} is not a dict.')
        if not isinstance(published, str | None):
            raise StudyError(f'{where}: published: {published!r} is not a string.')
        experiments[name] = Experiment(name, configs, cfg_options, published)
    return list(experiments.values())


def _config_path(file: str, study: Path) -> str:
    try:
        return os.path.normpath(Config._get_cfg_path(file, str(study))[0])
    except (ModuleNotFoundError, FileNotFoundError) as error:
        raise StudyError(f'{study}: config: {file}: {error}.') from error


def _budgets(content: dict, names: list[str], path: Path) -> list[Budget]:
    return read_budgets(content['budgets'], names, str(path)) if 'budgets' in content else []


def _seeds(seeds: object, path: Path) -> list[int]:
    if (
        not isinstance(seeds, list)
        or not seeds
        or any(type(seed) is not int or seed < 0 for seed in seeds)
        or len(set(seeds)) < len(seeds)
    ):
        raise StudyError(
            f'{path}: seeds: {seeds!r} is not a list of different integers of at least 0.'
        )
    return seeds


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
    budgets = [budget.name] if budget else []
    if cfg is None:
        return Run(experiment, seed, '', budgets)
    cfg = Config(cfg.to_dict())
    cfg.randomness = dict(cfg.get('randomness') or {}, seed=seed)
    others = dict(world_size=world_size) if world_size > 1 else {}
    return Run(experiment, seed, digest(cfg, **others), budgets, cfg)
