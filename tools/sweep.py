"""Run a study: every experiment with every seed, each in a process of its own.

Run again, it skips what is finished and resumes what was cut off. A run that failed of itself is
listed with the end of its log and not tried again without --retry-failed. Exit status: 0 when every
run is finished, 1 when one is not, 2 when the study cannot be run.
"""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.table import Table

from mmsmca.studies.progress import SweepProgress
from mmsmca.studies.study import Study, StudyError, load_study
from mmsmca.studies.sweep import (
    HeldError,
    Resources,
    Sweep,
    check_runs,
    hold,
    log_tail,
    try_experiments,
)

POLL_SECONDS = 1.0
# Where output is no terminal, a line this often says how far things are.
LINE_SECONDS = 60.0


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('study', type=Path, help='file of the study, see configs/studies')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/<name of the study>')
    parser.add_argument('--jobs', type=positive, default=1, help='runs at one time (default: 1)')
    parser.add_argument(
        '--gpus-per-job', type=int, help='default: 1 where there is a GPU or with --slurm, else 0'
    )
    parser.add_argument(
        '--slurm',
        nargs='*',
        metavar='KEY=VALUE',
        help="submit to Slurm with these parameters of submitit's, as partition=gpu time=2880",
    )
    parser.add_argument('--dry-run', action='store_true', help='print the plan and stop')
    parser.add_argument(
        '--no-trial-step',
        action='store_true',
        help='start without the trial of one training step of each experiment',
    )
    parser.add_argument('--retry-failed', action='store_true', help='start failed runs again')
    return parser.parse_args()


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{value} is less than 1')
    return value


def resources(args: argparse.Namespace) -> Resources:
    slurm = None
    if args.slurm is not None:
        slurm = {}
        for pair in args.slurm:
            key, equals, value = pair.partition('=')
            if not equals:
                raise StudyError(f'--slurm: {pair!r} is not KEY=VALUE.')
            slurm[key] = int(value) if value.isdigit() else value
    gpus = args.gpus_per_job
    if gpus is None:
        gpus = int(slurm is not None or torch.cuda.is_available())
    available = torch.cuda.device_count()
    if slurm is None and args.jobs * gpus > available:
        raise StudyError(
            f'--jobs {args.jobs} with --gpus-per-job {gpus} need {args.jobs * gpus} GPUs; this '
            f'machine has {available}.'
        )
    return Resources(args.jobs, gpus, slurm)


def plan(sweep: Sweep) -> Table:
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
            escape(f'{run.experiment.config} {run.experiment.cfg_options or ""}'),
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
        sweep.cancel()
        while sweep.active:
            sweep.collect()
            time.sleep(POLL_SECONDS)
    finally:
        if console.is_terminal:
            live.stop()


def report(sweep: Sweep, console: Console) -> int:
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


def sweep_study(args: argparse.Namespace, study: Study, console: Console) -> int:
    work_dir = args.work_dir or Path('work_dirs') / study.name
    sweep = Sweep(
        study, work_dir.resolve(), Path(__file__).resolve().with_name('train.py'), resources(args)
    )
    if args.dry_run:
        console.print(plan(sweep))
        return 0
    check_runs(study)
    if not args.no_trial_step:
        try_experiments(sweep)
    with hold(work_dir / '.lock'):
        sweep.write_study()
        run_all(sweep, args.retry_failed, console)
        return report(sweep, console)


def main() -> int:
    args = parse_args()
    # Side by side, runs share the cores; threads that wait for each other spin.
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // args.jobs)))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return sweep_study(args, load_study(args.study), Console())
    except (StudyError, HeldError) as error:
        print(f'sweep.py: error: {error}', file=sys.stderr)
        return 2


if __name__ == '__main__':
    sys.exit(main())
