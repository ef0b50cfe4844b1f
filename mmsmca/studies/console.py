"""Run a sweep at the console: print its plan, its progress and its outcome."""

import os
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from mmsmca.files import exclusive_lock

from .calibration import calibrate
from .record import Run, StudyError
from .report.logs import read_log
from .run_process import Signals, log_tail, owned_children
from .study import digest, study_configs
from .sweep import Sweep, check_experiments

POLL_SECONDS = 1.0
# Interval at which progress is printed where the output is not a terminal.
LINE_SECONDS = 60.0
# Load of other programs, in cores, above which they distort the times of a calibration.
BUSY_CORES = 0.3
STYLES = {'finished': 'green', 'running': 'bold', 'failed': 'red', 'cut off': 'yellow'}


class SweepProgress:
    """Live view of a sweep; rich renders it at every refresh."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep = sweep
        self._finished: dict[str, tuple[str, str, str, str]] = {}  # Their logs do not change.

    def __rich__(self) -> Table:
        states = [self.sweep.state_of(run) for run in self.sweep.runs]
        counts = ', '.join(f'{states.count(state)} {state}' for state in dict.fromkeys(states))
        table = Table(title=f'{self.sweep.study.name}: {counts}', title_justify='left')
        table.add_column('experiment', overflow='fold')
        for column in ('seed', 'state', 'progress', 'loss', 'AP so far', 'time left'):
            table.add_column(column, justify='left' if column == 'state' else 'right')
        for run, state in zip(self.sweep.runs, states, strict=True):
            cells = ('', '', '', '') if state in ('new', 'queued') else self._figures(run, state)
            style = STYLES.get(state, 'dim')
            table.add_row(run.experiment, str(run.seed), state, *cells, style=style)
        return table

    def _figures(self, run: Run, state: str) -> tuple[str, str, str, str]:
        if run.dir in self._finished:
            return self._finished[run.dir]
        train_cfg = run.cfg.train_cfg if run.cfg else {}
        log = read_log(self.sweep.dir_of(run), train_cfg)
        aps = log.evaluations.AP.dropna()
        progress, loss, ap, eta = '', '', '' if aps.empty else f'{aps.iloc[-1]:.3f}', ''
        if 'loss' in log.last:
            loss = f'{log.last["loss"]:.2f}'
            step, total = log.last['step'], run.length or 0
            if 'max_epochs' in train_cfg:
                progress = f'epoch {log.last["epoch"]}/{total}'
                left = log.epoch_length and total * log.epoch_length - step
            else:
                progress, left = f'{step}/{total}', total - step
            if state == 'running' and left is not None:
                eta = str(timedelta(seconds=round(left * log.last.get('time', 0))))
        if state == 'finished':
            self._finished[run.dir] = progress, loss, ap, eta
        return progress, loss, ap, eta


def run_sweep(sweep: Sweep, retry_failed: bool = False) -> int:
    """Check a sweep, run it, and print the outcome; return 0 if every run is finished, else 1."""
    console = Console()
    if any(not run.id for run in sweep.runs):
        raise StudyError(f'{sweep.study.uncalibrated}. --calibrate measures it.')
    sweep.check()
    try:
        sweep.work_dir.mkdir(parents=True, exist_ok=True)
        with exclusive_lock(sweep.work_dir / '.lock'):
            sweep.study.write(sweep.work_dir)
            _run_all(sweep, retry_failed, console)
            return _print_end(sweep, console)
    except OSError as error:
        raise StudyError(
            f'{error.filename or sweep.work_dir}: {error.strerror}. The runs are ending; once this '
            'is solved, the same command resumes them.'
        ) from error


def calibrate_study(study: Path, path: Path, only: Sequence[str] | None = None) -> int:
    """Measure the time per iteration of a study's experiments, print it and return status 0."""
    console = Console()
    if (load := os.getloadavg()[0]) > BUSY_CORES:
        console.print(
            f'[yellow]Other programs keep {load:.1f} cores busy (load of the last minute): this '
            'distorts the times. Calibrate again when nothing else runs.[/]'
        )
    cfgs = study_configs(study, only)
    check_experiments(study_configs(study, only))
    for name, seconds in calibrate(cfgs, {n: digest(cfg) for n, cfg in cfgs.items()}, path):
        console.print(f'{name}: {1e3 * seconds:.0f} ms per iteration')
    console.print(f'{path}: written')
    return 0


def print_plan(sweep: Sweep) -> int:
    """Print what would run, and what is still unknown about it; return status 0."""
    console = Console()
    table = Table(title=f'{sweep.study.name} in {sweep.work_dir}', title_justify='left')
    for column in ('experiment', 'seed', 'length', 'run', 'state'):
        table.add_column(column, overflow='fold')
    for run in sweep.runs:
        length = f'{run.length:,}' if run.length else '?'
        table.add_row(run.experiment, str(run.seed), length, run.id or '?', sweep.state_of(run))
    console.print(table)
    for experiment in sweep.study.experiments:
        if any(run.experiment == experiment.name for run in sweep.runs):
            configs = ' + '.join(experiment.configs)
            console.print(escape(f'{experiment.name}: {configs} {experiment.cfg_options or ""}'))
    if any(not run.id for run in sweep.runs):
        console.print(f'?: {escape(sweep.study.uncalibrated)}. --calibrate measures it.')
    return 0


def _run_all(sweep: Sweep, retry_failed: bool, console: Console) -> None:
    """Keep all job slots busy until no run is waiting or active, or a signal arrives."""
    waiting = sweep.pending(retry_failed)
    progress = SweepProgress(sweep)
    next_line = time.monotonic()
    # Draws nothing where the output is not a terminal. Signals wait, so that no run is interrupted
    # while it is being started.
    with (
        Live(progress, console=console, refresh_per_second=0.5, transient=True),
        Signals() as signals,
    ):
        with owned_children():
            while (waiting or sweep.active) and not signals.received:
                while waiting and len(sweep.active) < sweep.resources.jobs:
                    run = waiting.pop(0)
                    sweep.start(run)
                    console.print(f'{run.dir}: started')
                for run in sweep.collect():
                    console.print(f'{run.dir}: {sweep.state_of(run)}')
                if not console.is_terminal and time.monotonic() >= next_line:
                    console.print(progress)
                    next_line = time.monotonic() + LINE_SECONDS
                time.sleep(POLL_SECONDS)
        if signals.received:
            console.print('Interrupted: the runs are ending. The same command resumes them.')
            sweep.cancel()
        while sweep.active:
            sweep.collect()
            time.sleep(POLL_SECONDS)


def _print_end(sweep: Sweep, console: Console) -> int:
    """Print the outcome and return the exit status."""
    console.print(SweepProgress(sweep))
    states = [sweep.state_of(run) for run in sweep.runs]
    for run, state in zip(sweep.runs, states, strict=True):
        if state == 'failed':
            log = sweep.dir_of(run) / 'train.log'
            console.print(f'[red]{run.dir} failed.[/] The end of {log}:')
            for line in log_tail(sweep.dir_of(run)):
                console.print(f'  {line}', markup=False, highlight=False)
    if unfinished := len(states) - states.count('finished'):
        console.print(
            f'{unfinished} of {len(sweep.runs)} runs are not finished. The same command resumes '
            'those that were cut off; --retry-failed restarts failed ones.'
        )
    return int(unfinished > 0)
