"""A sweep at the console: its plan, its progress, how it ended."""

import time
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from .calibration import busy_warning, calibrate
from .progress import SweepProgress
from .run_process import hold, log_tail
from .study import Study, digest, lengths, study_configs
from .sweep import Resources, Sweep, check_runs, try_experiments

POLL_SECONDS = 1.0
# Where output is no terminal, a line this often says how far things are.
LINE_SECONDS = 60.0


def sweep_study(
    study: Study,
    selected: Study,
    work_dir: Path,
    train_script: Path,
    resources: Resources,
    dry_run: bool,
    trial_steps: bool,
    retry_failed: bool,
) -> int:
    """Run runs of a study, or print the plan.

    Args:
        study: The study, for its record.
        selected: The runs of it to see to.
        work_dir: Where it lives on disk.
        train_script: mmsmca's ``tools/train.py``.
        resources: What each run gets.
        dry_run: Print the plan and stop.
        trial_steps: Whether every experiment is tried before anything starts.
        retry_failed: Whether failed runs are started again.

    Returns:
        Exit status: 0 when every selected run is finished, else 1.

    Raises:
        StudyError: If an experiment cannot work.
        HeldError: If another process works in the folder.
    """
    console = Console()
    sweep = Sweep(selected, work_dir.resolve(), train_script, resources)
    if dry_run:
        console.print(plan(sweep))
        return 0
    check_runs(selected)
    if not study.budgets and len(set((each := lengths(study.runs)).values())) > 1:
        said = ', '.join(f'{name} {length}' for name, length in each.items())
        console.print(f'[yellow]Experiments train for different lengths: {said}.[/]')
    if trial_steps:
        try_experiments(sweep)
    with hold(work_dir / '.lock'):
        Sweep(study, sweep.work_dir, train_script, resources).write_study()
        run_all(sweep, retry_failed, console)
        return report(sweep, console)


def calibrate_study(study: Path, path: Path) -> int:
    """Measure the time per iteration of a study's experiments, and print it.

    Args:
        study: File of the study.
        path: File to write.

    Returns:
        Exit status 0.
    """
    console = Console()
    if warning := busy_warning():
        console.print(f'[yellow]{warning}[/]')
    cfgs = study_configs(study)
    for name, seconds in calibrate(cfgs, {n: digest(cfg) for n, cfg in cfgs.items()}, path):
        console.print(f'{name}: {1e3 * seconds:.0f} ms per iteration')
    console.print(f'{path}: written')
    return 0


def plan(sweep: Sweep) -> Table:
    """What would run, as a table."""
    table = Table(title=f'{sweep.study.name} in {sweep.work_dir}', title_justify='left')
    for column in ('experiment', 'seed', 'run', 'state'):
        table.add_column(column, no_wrap=True)
    table.add_column('config and cfg_options', overflow='fold')
    for run in sweep.study.runs:
        table.add_row(
            run.experiment.name,
            str(run.seed),
            run.id,
            sweep.state_of(run),
            escape(
                f'{" + ".join(map(str, run.experiment.configs))} {run.experiment.cfg_options or ""}'
            ),
        )
    return table


def run_all(sweep: Sweep, retry_failed: bool, console: Console) -> None:
    """Keep the places taken until nothing is left to start and nothing runs."""
    waiting = sweep.pending(retry_failed)
    progress = SweepProgress(sweep)
    live = Live(progress, console=console, refresh_per_second=0.5, transient=True)
    next_line = time.monotonic()
    if console.is_terminal:
        live.start()
    try:
        while waiting or sweep.active:
            while waiting and len(sweep.active) < sweep.resources.jobs:
                run = waiting.pop(0)
                sweep.start(run)
                console.print(f'{run.dir_name}: started')
            for run in sweep.collect():
                console.print(f'{run.dir_name}: {sweep.state_of(run)}')
            if not console.is_terminal and time.monotonic() >= next_line:
                console.print(progress)
                next_line = time.monotonic() + LINE_SECONDS
            time.sleep(POLL_SECONDS)
    except KeyboardInterrupt:
        console.print('Interrupted: ending the runs; the same command resumes them.')
        for run in sweep.cancel():
            console.print(f'{run.dir_name} goes on: it was started on another machine.')
        while sweep.active:
            sweep.collect()
            time.sleep(POLL_SECONDS)
    finally:
        if console.is_terminal:
            live.stop()


def report(sweep: Sweep, console: Console) -> int:
    """Print how it ended; the exit status."""
    console.print(SweepProgress(sweep))
    unfinished = 0
    for run in sweep.study.runs:
        state = sweep.state_of(run)
        run_dir = sweep.dir_of(run)
        if state == 'failed':
            console.print(f'[red]{run.dir_name} failed.[/] The end of {run_dir / "train.log"}:')
            for line in log_tail(run_dir / 'train.log'):
                console.print(f'  {line}', markup=False, highlight=False)
        unfinished += state != 'finished'
    if unfinished:
        console.print(
            f'{unfinished} of {len(sweep.study.runs)} runs are not finished. The same command goes '
            'on with those cut off; --retry-failed starts failed ones again.'
        )
    return int(unfinished > 0)
