"""Results of runs, from a study's folder or any MMDetection work directory, as data frames."""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mmengine.config import Config

from mmsmca.errors import one_line
from mmsmca.files import read_json
from mmsmca.studies.record import (
    FAILED,
    RESULT,
    RUN,
    Attempt,
    Budget,
    Run,
    Study,
    StudyError,
    read_attempts,
)

from .logs import METRICS, Log, read_log

# Settings that may differ between the configs of one experiment's runs.
SEED = re.compile(r'\bseed=\d+|^(?:work_dir|resume) = .*$', re.MULTILINE)
# load_from is the checkpoint to resume from if training resumed, else the initial weights.
RESUMED = re.compile(r'^resume = True$', re.MULTILINE)
LOAD_FROM = re.compile(r'^load_from = .*$', re.MULTILINE)


@dataclass
class Report:
    """Data of a report; :func:`.statistics.numbers` computes the rest from it.

    Attributes:
        study: Name of the study, or of the folder.
        baseline: Name of the experiment that the others are compared with.
        experiments: Names of the experiments, in the study's order.
        runs: A row per run: ``name`` (its folder), ``experiment``, ``seed`` (NaN if unknown),
            ``finished``, ``state`` (for readers), ``length`` (epochs or iterations to train, NaN if
            unknown), ``by_epoch`` (whether it counts epochs), ``iterations`` (the last logged one),
            ``peak_memory_mib`` (of the GPU or, without one, of the process) and the names of
            ``METRICS``: those of a finished run after its last iteration, between 0 and 1, else
            NaN.
        evaluations: A row per evaluation of a run, named by ``run``: see :class:`.logs.Log`.
        problems: Messages about files that cannot be read and data that is left out.
        attempts: Attempts of the runs, with revision, versions and hardware, by name of the run.
        budget: Title of the budget of all runs; empty if the study has none.
        chosen: The study's statement of what was chosen on which data.
        splits: Names of the annotation files that the runs were evaluated on.
        date: Time at which the runs were read.
        command: Command line that read the runs.
    """

    study: str
    baseline: str
    experiments: list[str]
    runs: pd.DataFrame
    evaluations: pd.DataFrame
    problems: list[str]
    attempts: dict[str, list[Attempt]]
    budget: str = ''
    chosen: str = ''
    splits: list[str] = field(default_factory=list)
    date: str = ''
    command: str = ''

    def runs_of(self, experiment: str) -> pd.DataFrame:
        """Runs of an experiment that have logged something or are finished."""
        known = (self.runs.iterations > 0) | self.runs.AP.notna()
        return self.runs[known & (self.runs.experiment == experiment)]

    @property
    def unit(self) -> str:
        """Unit of training length: ``'epochs'`` or ``'iterations'``."""
        logged = self.runs[self.runs.iterations > 0]
        return 'epochs' if len(logged) and logged.by_epoch.all() else 'iterations'


def read_reports(source: Path, baseline: str | None = None) -> dict[str, Report]:
    """Read all runs of a folder: a report per budget of a study, by name, else one without name.

    Args:
        source: Work directory of a study (with ``study.json``) or of a run, or a folder with
            several runs at any depth.
        baseline: Name of the baseline. Defaults to the study's, or the first experiment by name.
    """
    if not source.is_dir():
        raise StudyError(f'{source} is no folder: specify the work directory of a study or run')
    if study := Study.read(source):
        budgets: list[Budget | None] = [*study.budgets] or [None]
        reports = {b.name if b else '': _Reader(source).study(study, b) for b in budgets}
    else:
        reports = {'': _Reader(source).folder()}
    for report in reports.values():
        _leave_out_seeds_with_several_runs(report)
        _leave_out_times_of_different_machines(report)
        report.baseline = baseline or report.baseline
        if report.baseline not in report.experiments:
            raise StudyError(
                f"baseline '{report.baseline}' is not one of the experiments: "
                f'{", ".join(report.experiments)}'
            )
    return reports


def _leave_out_seeds_with_several_runs(report: Report) -> None:
    """Of two results of one seed, none can be paired with the baseline's."""
    final = report.runs[report.runs.AP.notna()]
    for name in final[final.seed.isna()].name:
        report.problems.append(f'{name}: its config has no seed: it counts in means, in no pair')
    for (experiment, seed), runs in final.groupby(['experiment', 'seed']):
        if len(runs) > 1:
            report.problems.append(
                f'{experiment}: seed {seed:.0f} has {len(runs)} finished runs '
                f'({", ".join(runs.name)}): none of them counts. Report on a folder with one'
            )
            report.runs.loc[runs.index, [*METRICS]] = np.nan
            report.runs.loc[runs.index, 'state'] = 'finished, but not the only run of its seed'


def _leave_out_times_of_different_machines(report: Report) -> None:
    machines = {
        ', '.join(attempt.hardware.get('gpus') or [str(attempt.hardware.get('cpu'))])
        for attempts in report.attempts.values()
        for attempt in attempts
        if attempt.hardware
    }
    if len(machines) < 2 or report.evaluations.seconds.isna().all():
        return
    report.problems.append(
        f'the runs were made on different machines ({"; ".join(sorted(machines))}): their training '
        'times do not compare and are left out'
    )
    report.evaluations['seconds'] = np.nan


class _Reader:
    def __init__(self, work_dir: Path) -> None:
        self.work_dir = work_dir
        self.problems: list[str] = []
        self.texts: dict[str, Config] = {}  # Configs by text without seed.
        self.runs: list[dict[str, Any]] = []
        self.evaluations: list[pd.DataFrame] = []
        self.attempts: dict[str, list[Attempt]] = {}
        self.configs: list[Config] = []

    def study(self, study: Study, budget: Budget | None) -> Report:
        """Report on a study's own runs, or on those of one budget."""
        for row in {row.dir: row for row in study.runs}.values():
            if budget is None or budget.name in row.budgets:
                self.run(self.work_dir / row.dir, row)
        report = self.report(study.name, [e.name for e in study.experiments])
        report.baseline, report.chosen = study.baseline, study.chosen
        report.budget = budget.title if budget else ''
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
        groups: dict[str, list[dict[str, Any]]] = {}
        for folder in sorted(folders):
            run = self.run(folder)
            groups.setdefault(_without_seed(folder) or run['name'], []).append(run)
        experiments: list[str] = []
        for runs in groups.values():
            name = _common_name([run['name'] for run in runs])
            experiments.append(runs[0]['name'] if name in experiments else name)
            for run in runs:
                run['experiment'] = experiments[-1]
        order = {name: i for i, name in enumerate(experiments)}
        self.runs.sort(key=lambda run: (order[run['experiment']], np.nan_to_num(run['seed'])))
        return self.report(self.work_dir.resolve().name, experiments)

    def report(self, name: str, experiments: list[str]) -> Report:
        """Report on the runs, with the first experiment as the baseline."""
        files = {(c.get('val_evaluator') or {}).get('ann_file') for c in self.configs}
        return Report(
            name,
            experiments[0],
            experiments,
            pd.DataFrame(self.runs),
            pd.concat([e for e in self.evaluations if len(e)] or self.evaluations[:1]),
            self.problems,
            self.attempts,
            splits=sorted(Path(file).name for file in files if isinstance(file, str)),
        )

    def run(self, folder: Path, row: Run | None = None) -> dict[str, Any]:
        """Read a run, in a study or not, and note files that cannot be read."""
        name = os.path.relpath(folder, self.work_dir)
        name = folder.resolve().name if name == '.' else name
        cfg = self.config(folder)
        train_cfg = cfg.train_cfg if cfg else {}
        log = read_log(folder, train_cfg)
        self.problems += [f'{name}/{problem}' for problem in log.problems]
        if cfg is not None:
            self.configs.append(cfg)
        self.json(folder / RUN)
        self.attempts[name] = read_attempts(folder)
        failed, result = self.json(folder / FAILED), self.json(folder / RESULT)
        final: Mapping[str, float | None] = {} if row else log.final_metrics
        if result is not None:
            final = self.recorded(name, result, log)
        run = dict(
            name=name,
            experiment=row.experiment if row else '',
            seed=row.seed if row else _seed(folder),
            finished=result is not None or bool(final),
            state='',
            length=np.nan if log.length is None else log.length,
            by_epoch='max_epochs' in train_cfg,
            iterations=log.iterations,
            peak_memory_mib=log.peak_memory_mib or (result or {}).get('peak_memory_mib') or np.nan,
            **{metric: final.get(metric, np.nan) for metric in METRICS},
        )
        run['state'] = self.state(run, log, failed)
        self.runs.append(run)
        self.evaluations.append(log.evaluations.assign(run=name))
        return run

    def recorded(self, name: str, result: dict, log: Log) -> dict[str, float]:
        """Metrics of a finished run, from its record alone; what differs in its log is noted."""
        metrics = result.get('metrics') or {}
        final = {
            key: float(value)
            for key in METRICS
            if isinstance(value := metrics.get(key), int | float) and 0 <= value <= 1
        }
        logged = log.final_metrics.get('AP')
        if 'AP' not in final:
            self.problems.append(
                f'{name}: finished, but {RESULT} has no AP after the last iteration: the run does '
                'not count. Delete its folder to train it again'
            )
            return {}
        if logged is None:
            self.problems.append(
                f'{name}: its log has no evaluation after the last iteration. Its AP of '
                f'{final["AP"]:.3f} is from {RESULT}; curves end earlier'
            )
        elif abs(logged - final['AP']) > 1e-6:
            self.problems.append(
                f'{name}: {RESULT} has an AP of {final["AP"]:.3f} after the last iteration, its '
                f'log {logged:.3f}: the former counts'
            )
        return final

    def state(self, run: dict[str, Any], log: Log, failed: dict | None) -> str:
        """Progress or failure of a run, for readers."""
        if run['finished']:
            return 'finished, but without an AP' if pd.isna(run['AP']) else 'finished'
        if not (self.attempts[run['name']] or log.iterations or failed):
            return 'not started'
        parts = []
        if failed:
            tail = [*failed.get('log_tail', ())][-1:]
            parts = [', '.join([f'failed: exit code {failed.get("exit_code")}', *tail])]
        last = None if log.evaluations.empty else log.evaluations.iloc[-1]
        if run['by_epoch']:
            parts.append(f'at epoch {0 if last is None else last.step:.0f} of {log.length}')
        else:
            parts.append(f'at iteration {log.iterations} of {log.length or "?"}')
        if last is not None and pd.notna(last.AP):
            parts.append(f'AP {100 * last.AP:.1f} so far')
        return ', '.join(parts)

    def config(self, folder: Path) -> Config | None:
        """The resolved config of a run's last attempt."""
        dump = max(_config_dumps(folder), default=None)
        if dump is None:
            if [*folder.glob('*/vis_data/scalars.json')]:
                self.note(folder, 'no config.py beside its log: its evaluations are left out')
            return None
        key = SEED.sub('', dump.read_text(errors='replace'))
        if key not in self.texts:
            try:
                config = Config.fromfile(dump, import_custom_modules=False)
                config.train_cfg.get('type')
            except Exception as error:  # It is Python code and can raise anything.
                self.note(dump, f'cannot be read ({one_line(error)})')
                return None
            self.texts[key] = config
        return self.texts[key]

    def json(self, path: Path) -> dict | None:
        """Read a JSON object; None if the file is missing, or broken, which is noted."""
        content = read_json(path)
        if content is None and path.exists():
            self.note(path, 'cannot be read (not a JSON object)')
        return content

    def note(self, path: Path, problem: str) -> None:
        """Note a problem of a file or folder."""
        self.problems.append(f'{os.path.relpath(path, self.work_dir)}: {problem}')


def _config_dumps(folder: Path) -> list[Path]:
    """Configs of the attempts that trained, else of all: a test of the run dumps its own too."""
    dumps = sorted(folder.glob('*/vis_data/config.py'))
    return [dump for dump in dumps if dump.with_name('scalars.json').exists()] or dumps


def _seed(folder: Path) -> float:
    dump = max(_config_dumps(folder), default=None)
    found = re.search(r'\bseed=(\d+)', dump.read_text()) if dump else None
    return int(found[1]) if found else np.nan


def _without_seed(folder: Path) -> str | None:
    """Text of the last config without what may differ, with the first one's initial weights."""
    dumps = _config_dumps(folder)
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
