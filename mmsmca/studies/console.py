"""Run a sweep at the console: print its plan, its progress and its outcome."""

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from .calibration import busy_warning, calibrate
from .progress import SweepProgress
from .run_process import LOCK, Signals, hold, log_tail
from .study import digest, study_configs
from .sweep import Sweep, check_experiments

POLL_SECONDS = 1.0
# Interval at which progress is printed where the output is not a terminal.
LINE_SECONDS = 60.0


def run_sweep(sweep: Sweep, trial_steps: bool = True, retry_failed: bool = False) -> int:
    """Check a sweep, run it, and print the outcome.

    Args:
        sweep: The sweep.
        trial_steps: Whether to try a training step of every experiment first. Defaults to True.
        retry_failed: Whether to start failed runs again. Defaults to False.

    Returns:
        Exit status: 0 when every run is finished, else 1.

    Raises:
        StudyError: If an experiment cannot be run.
        HeldError: If another process is using the folder.
    """
    console = Console()
    sweep.check()
    lengths = {run.experiment: run.length for run in sweep.study.runs}
    if not sweep.study.budgets and len(set(lengths.values())) > 1:
        said = ', '.join(f'{name} {length}' for name, length in lengths.items())
        console.print(f'[yellow]Experiments train for different lengths: {said}.[/]')
    if trial_steps:
        sweep.try_experiments()
    with hold(sweep.work_dir / LOCK):
        sweep.study.write(sweep.work_dir)
        _run_all(sweep, retry_failed, console)
        return _print_end(sweep, console)


def calibrate_study(study: Path, path: Path, only: Sequence[str] | None = None) -> int:
    """Measure the time per iteration of a study's experiments, and print it.

    Args:
        study: File of the study.
        path: File to write.
        only: As in :func:`.study_configs`.

    Returns:
        Exit status 0.

    Raises:
        StudyError: If an experiment is unknown or cannot be run.
    """
    console = Console()
    if warning := busy_warning():
        console.print(f'[yellow]{warning}[/]')
    cfgs = study_configs(study, only)
    check_experiments(study_configs(study, only))
    for name, seconds in calibrate(cfgs, {n: digest(cfg) for n, cfg in cfgs.items()}, path):
        console.print(f'{name}: {1e3 * seconds:.0f} ms per iteration')
    console.print(f'{path}: written')
    return 0


def print_plan(sweep: Sweep) -> int:
    """Print what would run, and what is still unknown about it.

    Returns:
        Exit status 0.
    """
    console = Console()
    table = Table(title=f'{sweep.study.name} in {sweep.work_dir}', title_justify='left')
    for column in ('experiment', 'seed', 'length', 'run', 'state'):
        table.add_column(column, overflow='fold')
    for run in sweep.runs:
        length = f'{run.length:,}' if run.length else '?'
        state = sweep.state_of(run)
        table.add_row(run.experiment, str(run.seed), length, run.id or '?', state)
    console.print(table)
    for experiment in sweep.study.experiments:
        if any(run.experiment == experiment.name for run in sweep.runs):
            configs = ' + '.join(experiment.configs)
            console.print(escape(f'{experiment.name}: {configs} {experiment.cfg_options or ""}'))
    if any(not run.id for run in sweep.runs):
        console.print(
            '? depends on times per iteration that have not been measured here: --calibrate '
            'measures them.'
        )
    return 0


def _run_all(sweep: Sweep, retry_failed: bool, console: Console) -> None:
    """Keep all job slots busy until no run is waiting or active, or a signal arrives."""
    waiting = sweep.pending(retry_failed)
    progress = SweepProgress(sweep)
    next_line = time.monotonic()
    # Draws nothing where the output is not a terminal.
    with Live(progress, console=console, refresh_per_second=0.5, transient=True):
        # Signals wait, so that no run is interrupted while it is being started.
        with Signals() as signals:
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
            console.print('Interrupted: ending the runs; the same command resumes them.')
            for run in sweep.cancel():
                console.print(f'{run.dir} keeps running: it was started on another machine.')
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
