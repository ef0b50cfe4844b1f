"""Results of runs, from a study's folder, any MMDetection work directory or a report.json."""

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from mmsmca.files import read_json
from mmsmca.studies.record import (
    CALIBRATION,
    Attempt,
    Budget,
    Run,
    Study,
    StudyError,
    from_json,
    read_attempts,
)

from .logs import Evaluation, read_log
from .published import Published, find_published

# Settings that may differ between the configs of one experiment's runs.
SEED = re.compile(r'\bseed=\d+|^(?:work_dir|resume) = .*$', re.MULTILINE)
# load_from is the checkpoint to resume from if training resumed, else the initial weights.
RESUMED = re.compile(r'^resume = True$', re.MULTILINE)
LOAD_FROM = re.compile(r'^load_from = .*$', re.MULTILINE)


@dataclass
class Result:
    """Result of a run, read from its files.

    Attributes:
        experiment: Name of the experiment.
        seed: Random seed; None if the config has none.
        name: Folder of the run, relative to the folder that is reported on.
        finished: Whether training is complete.
        length: Total iterations or epochs to train; None if unknown.
        by_epoch: Whether the run counts epochs rather than iterations.
        iterations: Last logged iteration.
        evaluations: Evaluations in the order of training.
        peak_memory_mib: Largest GPU memory or, without a GPU, memory of the training process.
        failure: Exit code and last output line of the last attempt, if it failed.
        attempts: All attempts, with revision, versions and hardware.
        cfg: Config of the last attempt; None if it cannot be read. Not written to the JSON.
    """

    experiment: str
    seed: int | None
    name: str
    finished: bool
    length: int | None
    by_epoch: bool
    iterations: int
    evaluations: list[Evaluation]
    peak_memory_mib: float | None
    failure: str | None
    attempts: list[Attempt]
    cfg: Config | None = field(default=None, repr=False, compare=False)

    @property
    def final(self) -> dict[str, float | None]:
        """Metrics of the last evaluation of a finished run; empty if there are none."""
        return self.evaluations[-1].metrics if self.finished and self.evaluations else {}

    @property
    def state(self) -> str:
        """Progress or failure of the run, for readers."""
        if self.finished:
            return 'finished' if self.evaluations else 'finished, but no evaluation can be read'
        if not (self.attempts or self.iterations or self.failure):
            return 'not started'
        parts = [f'failed: {self.failure}'] if self.failure else []
        last = self.evaluations[-1] if self.evaluations else None
        if not self.iterations:
            parts.append('nothing logged')
        elif self.by_epoch:
            parts.append(f'at epoch {last.epoch if last else 0} of {self.length}')
        else:
            parts.append(f'at iteration {self.iterations} of {self.length or "?"}')
        if last and last.metrics['AP'] is not None:
            parts.append(f'AP {100 * last.metrics["AP"]:.1f} so far')
        return ', '.join(parts)


@dataclass
class Report:
    """Data of a report; :func:`.statistics.numbers` computes the rest from it.

    Attributes:
        study: Name of the study, or of the folder.
        baseline: Name of the experiment that the others are compared with.
        experiments: Names of the experiments, in the study's order.
        runs: Results of the runs.
        problems: Messages about files that cannot be read and data that is left out.
        budget: Title of the budget of all runs; empty if the study has none.
        chosen: The study's statement of what was chosen on which data.
        published: Published results by experiment name.
        calibration: Content of ``calibration.json``: times per iteration, from which budgets in
            training time are computed; empty if there is none.
        costs: Parameters, multiply-adds and latency, as in ``costs.json``.
        splits: Names of the annotation files that the runs were evaluated on.
        date: Time at which the runs were read.
        command: Command line that read the runs.
    """

    study: str
    baseline: str
    experiments: list[str]
    runs: list[Result]
    problems: list[str]
    budget: str = ''
    chosen: str = ''
    published: dict[str, Published] = field(default_factory=dict)
    calibration: dict[str, Any] = field(default_factory=dict)
    costs: dict[str, Any] = field(default_factory=dict)
    splits: list[str] = field(default_factory=list)
    date: str = ''
    command: str = ''

    def runs_of(self, experiment: str) -> list[Result]:
        """Runs of an experiment that have logged something."""
        return [run for run in self.runs if run.experiment == experiment and run.iterations]

    @property
    def unit(self) -> str:
        """Unit of training length: ``'epochs'`` or ``'iterations'``."""
        logged = [run for run in self.runs if run.iterations]
        return 'epochs' if logged and all(run.by_epoch for run in logged) else 'iterations'

    @property
    def unfinished(self) -> list[Result]:
        """Runs without final metrics."""
        return [run for run in self.runs if not run.final]

    @classmethod
    def read(cls, path: Path) -> 'Report':
        """Read a report from a ``report.json``.

        Raises:
            StudyError: If the file is not a report.
        """
        try:
            content = read_json(path) or {}
            return from_json(cls, {key: content[key] for key in cls.__dataclass_fields__})
        except (KeyError, TypeError) as error:
            raise StudyError(
                f'{path} is not the report.json of a report ({type(error).__name__}: {error}): '
                'specify one, or the folder with the runs'
            ) from error


def read_reports(source: Path, baseline: str | None = None) -> dict[str, Report]:
    """Read all runs of a folder, or those of an earlier report.

    Args:
        source: Work directory of a study (with ``study.json``) or of a run, a folder with several
            runs at any depth, or a ``report.json``.
        baseline: Name of the baseline. Defaults to the study's, or the first experiment by name.

    Returns:
        Reports by name of the study's budgets; without budgets, a single one with an empty name.

    Raises:
        StudyError: If there are no runs, no such baseline, or ``study.json`` cannot be read.
    """
    if source.is_file():
        reports = {'': Report.read(source)}
    elif not source.is_dir():
        raise StudyError(f'{source} does not exist: specify the work directory of a study or run')
    elif study := Study.read(source):
        budgets: list[Budget | None] = [*study.budgets] or [None]
        reports = {b.name if b else '': _Reader(source).study(study, b) for b in budgets}
    else:
        reports = {'': _Reader(source).folder()}
    for report in reports.values():
        _leave_out_times_of_different_machines(report)
        report.baseline = baseline or report.baseline
        if report.baseline not in report.experiments:
            raise StudyError(
                f"baseline '{report.baseline}' is not one of the experiments: "
                f'{", ".join(report.experiments)}'
            )
    return reports


def _leave_out_times_of_different_machines(report: Report) -> None:
    found = {
        ', '.join(attempt.hardware.get('gpus') or [str(attempt.hardware.get('cpu'))])
        for run in report.runs
        for attempt in run.attempts
        if attempt.hardware
    }
    evaluations = [evaluation for run in report.runs for evaluation in run.evaluations]
    if len(found) < 2 or all(evaluation.seconds is None for evaluation in evaluations):
        return
    report.problems.append(
        f'the runs were made on different machines ({"; ".join(sorted(found))}): their training '
        'times do not compare and are left out'
    )
    for evaluation in evaluations:
        evaluation.seconds = None


class _Reader:
    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.problems: list[str] = []
        self.configs: dict[str, Config] = {}  # By text without seed.

    def study(self, study: Study, budget: Budget | None) -> Report:
        """Report on a study's own runs, or on those of one budget."""
        rows = [row for row in study.runs if budget is None or budget.name in row.budgets]
        runs = [self.run(self.work_dir / row.dir, row) for row in rows]
        published = {}
        for experiment in study.experiments:
            try:
                if experiment.published and (found := find_published(experiment.published)):
                    published[experiment.name] = found
            except StudyError as error:
                self.problems.append(str(error))
        report = self.report(study.name, [e.name for e in study.experiments], runs)
        report.baseline, report.chosen, report.published = study.baseline, study.chosen, published
        if budget is not None:
            report.budget = budget.title
            report.calibration = self.json(self.work_dir / CALIBRATION) or {}
        return report

    def folder(self) -> Report:
        """Report on all runs below the folder, grouped by their configs without the seed.

        An experiment is named after its run's folder or the common prefix of its runs' folders.
        """
        folders = {path.parents[2] for path in self.work_dir.glob('**/vis_data/scalars.json')}
        if not folders:
            raise StudyError(
                f'{self.work_dir} has no runs: it contains neither a study.json nor a '
                '*/vis_data/scalars.json'
            )
        groups: dict[str, list[Result]] = {}
        for folder in sorted(folders):
            run = self.run(folder)
            groups.setdefault(_without_seed(folder) or run.name, []).append(run)
        experiments: dict[str, list[Result]] = {}
        for runs in groups.values():
            name = _common_name([run.name for run in runs])
            name = runs[0].name if name in experiments else name
            experiments[name] = sorted(runs, key=lambda run: (run.seed is None, run.seed))
            for run in runs:
                run.experiment = name
        all_runs = [run for runs in experiments.values() for run in runs]
        return self.report(self.work_dir.resolve().name, list(experiments), all_runs)

    def report(self, name: str, experiments: list[str], runs: list[Result]) -> Report:
        """Report on runs, with the first experiment as the baseline."""
        files = {(r.cfg.get('val_evaluator') or {}).get('ann_file') for r in runs if r.cfg}
        splits = sorted(Path(file).name for file in files if isinstance(file, str))
        return Report(name, experiments[0], experiments, runs, self.problems, splits=splits)

    def run(self, folder: Path, row: Run | None = None) -> Result:
        """Read a run, in a study or not, and note files that cannot be read."""
        name = os.path.relpath(folder, self.work_dir)
        name = folder.resolve().name if name == '.' else name
        cfg = self.config(folder)
        known = cfg or Config(dict(train_cfg={}))
        logger = known.get('default_hooks', {}).get('logger', {})
        log = read_log(folder, known.train_cfg, logger.get('interval', 10))
        self.problems += [f'{name}/{problem}' for problem in log.problems]
        length = known.train_cfg.get('max_epochs', known.train_cfg.get('max_iters'))
        failure = None
        if failed := self.json(folder / 'failed.json'):
            tail = [*failed.get('log_tail', ())][-1:]
            failure = ', '.join([f'exit code {failed.get("exit_code")}', *tail])
        self.json(folder / 'run.json')
        result = self.json(folder / 'result.json')
        if row is not None:
            finished = result is not None
            if finished and not log.evaluations:
                self.problems.append(f'{name}: finished, but its scalars.json has no evaluation')
        else:
            last = log.evaluations[-1] if log.evaluations else None
            finished = bool(length and last and (last.epoch or last.iteration) >= length)
        return Result(
            experiment=row.experiment if row else '',
            seed=row.seed if row else _seed(folder),
            name=name,
            finished=finished,
            length=length,
            by_epoch='max_epochs' in known.train_cfg,
            iterations=log.iterations,
            evaluations=log.evaluations,
            peak_memory_mib=log.peak_memory_mib or (result or {}).get('peak_memory_mib'),
            failure=failure,
            attempts=read_attempts(folder),
            cfg=cfg,
        )

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
            except Exception as error:  # It is Python code and can raise anything.
                reason = ' '.join(f'{type(error).__name__}: {error}'.split())
                self.unreadable(dump, reason)
                return None
            self.configs[key] = config
        return self.configs[key]

    def json(self, path: Path) -> dict | None:
        """Read a JSON object; None if the file is missing, or broken, which is noted."""
        content = read_json(path)
        if content is None and path.exists():
            self.unreadable(path, 'not a JSON object')
        return content

    def unreadable(self, path: Path, reason: str) -> None:
        """Note a file that cannot be read."""
        self.problems.append(f'{os.path.relpath(path, self.work_dir)}: cannot be read ({reason})')


def _config_dump(folder: Path) -> Path | None:
    return max(folder.glob('*/vis_data/config.py'), default=None)


def _seed(folder: Path) -> int | None:
    dump = _config_dump(folder)
    found = re.search(r'\bseed=(\d+)', dump.read_text()) if dump else None
    return int(found[1]) if found else None


def _without_seed(folder: Path) -> str | None:
    """Text of the last config without what may differ, with the first one's initial weights."""
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
