"""Runs that lie in a folder: those of a study, or any of MMDetection's work directories."""

import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmsmca.errors import UserError

from .logs import Log, read_log
from .published import Published, PublishedError, find_published

# What may differ between the configs of runs of one experiment.
SEED = re.compile(r'\bseed=\d+|^(?:work_dir|resume) = .*$', re.MULTILINE)
# Where training resumed, load_from is where; else it is what the weights were at first.
RESUMED = re.compile(r'^resume = True$', re.MULTILINE)
LOAD_FROM = re.compile(r'^load_from = .*$', re.MULTILINE)


class ReportError(UserError):
    """A folder that cannot be reported on. The message names it and the remedy."""


@dataclass
class Run:
    """One run.

    Attributes:
        experiment: Name of its experiment.
        name: Its folder, relative to what is reported on.
        folder: Its folder.
        seed: None if its config has none.
        config: As it ran; None if there is none to read.
        log: What it logged.
        finished: Whether it trained to its end.
        length: Iterations or epochs it is to train; None if unknown.
        info: ``run.json`` of a study, with versions, hardware and revision of every attempt.
        failure: The last attempt's exit code and last line, if it failed.
    """

    experiment: str
    name: str
    folder: Path
    seed: int | None
    config: Config | None
    log: Log
    finished: bool
    length: int | None
    info: dict
    failure: str | None

    @property
    def state(self) -> str:
        """How far it came, in words."""
        if self.finished:
            return 'finished'
        parts = [f'failed: {self.failure}'] if self.failure else []
        evaluations = self.log.evaluations
        if not self.log.iterations:
            parts.append('nothing logged')
        elif self.by_epoch:
            parts.append(f'at epoch {evaluations[-1].epoch if evaluations else 0} of {self.length}')
        else:
            parts.append(f'at iteration {self.log.iterations} of {self.length or "?"}')
        if evaluations and evaluations[-1].metrics['AP'] is not None:
            parts.append(f'AP {100 * evaluations[-1].metrics["AP"]:.1f} so far')
        return ', '.join(parts)

    @property
    def attempts(self) -> list[dict]:
        """What it was started with, each time: ``git``, ``versions``, ``hardware``."""
        # Records of sweeps before 0.2 have one of each, written where the sweep ran.
        return self.info.get('attempts') or [self.info]

    @property
    def by_epoch(self) -> bool:
        """Whether it counts epochs rather than iterations."""
        return self.config is not None and 'max_epochs' in self.config.train_cfg


@dataclass(eq=False)  # Hashed as the object that it is.
class Experiment:
    """Runs that differ in their seed only.

    Attributes:
        name: As in the study.
        runs: In the order of their seeds.
        published: What was published of it, if the study names it.
    """

    name: str
    runs: list[Run] = field(default_factory=list)
    published: Published | None = None

    @property
    def finished(self) -> list[Run]:
        """Runs that trained to their end and have something to show for it."""
        return [run for run in self.runs if run.finished and run.log.evaluations]


@dataclass
class Study:
    """What is reported on.

    Attributes:
        name: Of the study, or the folder.
        baseline: Name of the experiment that others are compared to.
        experiments: In the study's order.
        missing: Runs that are not finished, and what is known of them.
        problems: Files that could not be read.
        title: Of the budget that all runs have; empty if the study names none.
        chosen: What was chosen on which data, as the study says.
        calibration: Time per iteration that budgets in training time are computed with, as
            ``calibration.json`` has it; empty if there is none.
    """

    name: str
    baseline: str
    experiments: list[Experiment]
    missing: list[dict[str, Any]]
    problems: list[str]
    title: str = ''
    chosen: str = ''
    calibration: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Experiment:
        return next(e for e in self.experiments if e.name == name)

    @property
    def splits(self) -> list[str]:
        """Annotation files that the runs were evaluated on, by name."""
        files = {
            (run.config.get('val_evaluator') or {}).get('ann_file')
            for experiment in self.experiments
            for run in experiment.runs
            if run.config
        }
        return sorted(Path(file).name for file in files if isinstance(file, str))

    @property
    def unit(self) -> str:
        """What the length of training is counted in."""
        runs = [run for experiment in self.experiments for run in experiment.runs]
        return 'epochs' if all(run.by_epoch for run in runs) else 'iterations'


def budgets_of(work_dir: Path) -> list[str]:
    """Names of the budgets of the study that lies in a folder; none if it has none."""
    path = work_dir / 'study.json'
    try:
        return [budget['name'] for budget in json.loads(path.read_text()).get('budgets', [])]
    except (OSError, ValueError, AttributeError, KeyError, TypeError):
        return []  # What is wrong with it, read_study says.


def read_study(work_dir: Path, baseline: str | None = None, budget: str | None = None) -> Study:
    """Read all runs of a folder.

    Args:
        work_dir: Work directory of a study (with ``study.json``), of a run, or a folder of
            several, however deep.
        baseline: Name of an experiment. Defaults to the study's, or the first by name.
        budget: Name of a budget of the study: its runs alone. Defaults to None: all runs, which is
            for studies without budgets.

    Raises:
        ReportError: If there are no runs, no such baseline, or ``study.json`` cannot be read.
    """
    if not work_dir.is_dir():
        raise ReportError(f'{work_dir} does not exist: name the work directory of a study or run')
    reader = _Reader(work_dir)
    if (work_dir / 'study.json').exists():
        study = reader.study(budget)
    else:
        study = reader.folder()
    names = [experiment.name for experiment in study.experiments]
    _leave_out_times_of_different_machines(study)
    study.baseline = baseline or study.baseline
    if study.baseline not in names:
        raise ReportError(
            f"baseline '{study.baseline}' is none of the experiments: {', '.join(names)}"
        )
    return study


def _leave_out_times_of_different_machines(study: Study) -> None:
    runs = [run for experiment in study.experiments for run in experiment.runs]
    found = set()
    for run in runs:
        for attempt in run.attempts:
            if hardware := attempt.get('hardware'):
                found.add(', '.join(hardware.get('gpus') or [str(hardware.get('cpu'))]))
    if len(found) < 2:
        return
    study.problems.append(
        f'the runs were made on different machines ({"; ".join(sorted(found))}): their training '
        'times do not compare and are left out'
    )
    for run in runs:
        run.log.iteration_seconds = None
        for evaluation in run.log.evaluations:
            evaluation.seconds = None


class _Reader:
    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.problems: list[str] = []
        self.configs: dict[str, Config] = {}  # By their text without the seed.

    def study(self, budget: str | None) -> Study:
        """The study that ``study.json`` describes, and only its own runs, or those of a budget."""
        path = self.work_dir / 'study.json'
        try:
            definition = json.loads(path.read_text())
            experiments = {e['name']: Experiment(e['name']) for e in definition['experiments']}
            missing = []
            for row in definition['runs']:
                if budget is not None and budget not in row['budgets']:
                    continue
                run = self.run(self.work_dir / row['dir'], row['experiment'], row['seed'])
                if run.log.iterations:
                    experiments[row['experiment']].runs.append(run)
                if not (run.finished and run.log.evaluations):
                    missing.append(_missing(run))
            for row in definition['experiments']:
                if row.get('published'):
                    experiments[row['name']].published = self.published(row['published'])
            name, baseline = definition['name'], definition['baseline']
            titles = {b['name']: b['title'] for b in definition.get('budgets', [])}
            title = '' if budget is None else titles[budget]
            chosen = definition.get('chosen', '')
        except (ValueError, KeyError, TypeError) as error:
            raise ReportError(
                f'{path} cannot be read ({type(error).__name__}: {error}): run the study again, '
                'which writes it, or move it away to have the runs reported on without it'
            ) from error
        found = list(experiments.values())
        calibration = (title and self.json(self.work_dir / 'calibration.json')) or {}
        return Study(name, baseline, found, missing, self.problems, title, chosen, calibration)

    def folder(self) -> Study:
        """Every run below the folder; those whose configs differ in the seed only belong together.

        An experiment is named as its folder, or as what its runs' folders begin with.
        """
        folders = {path.parents[2] for path in self.work_dir.glob('**/vis_data/scalars.json')}
        if not folders:
            raise ReportError(
                f'{self.work_dir} has no run: there is neither a study.json nor a '
                '*/vis_data/scalars.json below it'
            )
        groups: dict[str, list[Run]] = {}
        for folder in sorted(folders):
            run = self.run(folder)
            key = _without_seed(run.folder) or run.name
            groups.setdefault(key, []).append(run)
        experiments: dict[str, Experiment] = {}
        for runs in groups.values():
            name = _common_name([run.name for run in runs])
            if name in experiments:
                name = runs[0].name
            for run in runs:
                run.experiment = name
            runs.sort(key=lambda run: (run.seed is None, run.seed))
            experiments[name] = Experiment(name, [run for run in runs if run.log.iterations])
        all_runs = [run for runs in groups.values() for run in runs]
        missing = [_missing(run) for run in all_runs if not run.finished]
        name = self.work_dir.resolve().name
        return Study(
            name, next(iter(experiments)), list(experiments.values()), missing, self.problems
        )

    def run(self, folder: Path, experiment: str = '', seed: int | None = None) -> Run:
        """Read a run; what cannot be read is noted."""
        name = os.path.relpath(folder, self.work_dir)
        name = folder.resolve().name if name == '.' else name
        config = self.config(folder)
        train_cfg = config.train_cfg if config else {}
        interval = 10
        if config:
            interval = config.get('default_hooks', {}).get('logger', {}).get('interval', interval)
        log = read_log(folder, train_cfg, interval)
        self.problems += [f'{name}/{problem}' for problem in log.problems]
        result = self.json(folder / 'result.json')
        if result and log.peak_memory_mib is None:
            log.peak_memory_mib = result.get('peak_memory_mib')
        failed = self.json(folder / 'failed.json')
        info = self.json(folder / 'run.json') or {}
        if seed is None and (dump := _config_dump(folder)):
            found = re.search(r'\bseed=(\d+)', dump.read_text())
            seed = int(found[1]) if found else None
        length = train_cfg.get('max_epochs', train_cfg.get('max_iters'))
        if (self.work_dir / 'study.json').exists():
            finished = result is not None
        else:
            last = log.evaluations[-1] if log.evaluations else None
            done = (last.epoch or last.iteration) if last else 0
            finished = length is not None and done >= length
        if finished and not log.evaluations:
            self.problems.append(f'{name}: finished, but its scalars.json has no evaluation')
        failure = None
        if failed and not finished:
            tail = str(failed.get('log_tail') or '').strip().splitlines()
            failure = ', '.join([f'exit code {failed.get("exit_code")}', *tail[-1:]])
        return Run(
            experiment, name, folder, seed, config, log, finished, length, info, failure
        )  # fmt: skip

    def config(self, folder: Path) -> Config | None:
        """The resolved config of a run's last attempt."""
        dump = _config_dump(folder)
        if dump is None:
            return None
        key = SEED.sub('', dump.read_text(errors='replace'))
        if key not in self.configs:
            try:
                config = Config.fromfile(dump, import_custom_modules=False)
                config.train_cfg.get('type')
            except Exception as error:  # It is Python: anything can be raised.
                reason = ' '.join(f'{type(error).__name__}: {error}'.split())
                self.problems.append(
                    f'{os.path.relpath(dump, self.work_dir)}: cannot be read ({reason})'
                )
                return None
            self.configs[key] = config
        return self.configs[key]

    def json(self, path: Path) -> dict | None:
        """A JSON file's object; None if it is not there, or broken, which is noted."""
        if not path.exists():
            return None
        try:
            content = json.loads(path.read_text(errors='replace'))
            if isinstance(content, dict):
                return content
            reason = 'not an object'
        except ValueError as error:
            reason = str(error)
        self.problems.append(f'{os.path.relpath(path, self.work_dir)}: cannot be read ({reason})')
        return None

    def published(self, reference: str) -> Published | None:
        """What was published; that there is nothing such is noted."""
        try:
            return find_published(reference)
        except PublishedError as error:
            self.problems.append(str(error))
            return None


def _config_dump(folder: Path) -> Path | None:
    return max(folder.glob('*/vis_data/config.py'), default=None)


def _without_seed(folder: Path) -> str | None:
    """The last attempt's config less what may differ, with the weights of the first."""
    dumps = sorted(folder.glob('*/vis_data/config.py'))
    if not dumps:
        return None
    first, last = (dump.read_text(errors='replace') for dump in (dumps[0], dumps[-1]))
    began = None if RESUMED.search(first) else LOAD_FROM.search(first)
    text = LOAD_FROM.sub('', SEED.sub('', last)).rstrip()
    return text if began is None else f'{text}\n{began[0]}'


def _common_name(names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    common = re.sub(r'[-_/. ]*(seed)?[-_/. ]*$', '', os.path.commonprefix(names))
    return common or names[0]


def _missing(run: Run) -> dict[str, Any]:
    state = run.state if not run.finished else 'finished, but no evaluation can be read'
    if not run.folder.exists():
        state = 'not started'
    return dict(experiment=run.experiment, seed=run.seed, run=run.name, state=state)
