"""Run a study: every experiment with every seed, each in its own process.

The same command skips runs that are finished and resumes those that were cut off. A run that failed
is listed with the end of its log and retried only with --retry-failed. Exit status: 0 if every run
is finished, 1 if one is not, 2 if the study cannot be run.
"""

import argparse
import os
import signal
import sys
from pathlib import Path

# Slow imports are deferred until the arguments have been parsed.


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('study', type=Path, help='file of the study, see configs/studies')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/<name of the study>')
    parser.add_argument(
        '--jobs',
        type=positive,
        default=1,
        help='runs at a time (default: 1); they share the GPUs, in turn, if there are too few',
    )
    parser.add_argument(
        '--gpus-per-job', type=int, help='default: 1 if there is a GPU or with --slurm, else 0'
    )
    parser.add_argument(
        '--slurm',
        nargs='*',
        metavar='KEY=VALUE',
        help='submit to Slurm with these submitit parameters, such as partition=gpu time=2880',
    )
    parser.add_argument('--only', nargs='+', metavar='EXPERIMENT', help='only these experiments')
    parser.add_argument('--seeds', nargs='+', type=int, help='only these seeds')
    parser.add_argument('--budgets', nargs='+', metavar='BUDGET', help='only these budgets')
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument('--dry-run', action='store_true', help='print the plan and stop')
    instead.add_argument(
        '--calibrate',
        action='store_true',
        help='measure the time per iteration of every experiment, or of those of --only, for '
        'budgets in training time, and stop; use the same --jobs as for the sweep, and run '
        'nothing else',
    )
    parser.add_argument('--retry-failed', action='store_true', help='start failed runs again')
    return parser.parse_args()


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{value} is less than 1')
    return value


def slurm_parameters(pairs: list[str]) -> dict:
    from mmsmca.studies.record import StudyError
    from mmsmca.studies.sweep import check_slurm

    parameters: dict[str, int | str] = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals:
            raise StudyError(f'--slurm: {pair!r} is not KEY=VALUE.')
        parameters[key] = int(value) if value.isdigit() else value
    check_slurm(parameters)
    return parameters


def sweep(args: argparse.Namespace) -> int:
    from mmsmca.studies.console import calibrate_study, print_plan, run_sweep
    from mmsmca.studies.record import CALIBRATION
    from mmsmca.studies.study import load_study, select
    from mmsmca.studies.sweep import Resources, Sweep, visible_gpus

    work_dir = (args.work_dir or Path('work_dirs') / args.study.stem).resolve()
    if args.calibrate:
        return calibrate_study(args.study, work_dir / CALIBRATION, args.only)
    slurm = None if args.slurm is None else slurm_parameters(args.slurm)
    gpus = args.gpus_per_job
    if gpus is None:
        gpus = int(slurm is not None or bool(visible_gpus()))
    resources = Resources(args.jobs, gpus, slurm)
    if not args.dry_run:
        resources.check()
    study = load_study(args.study, max(1, gpus), work_dir / CALIBRATION)
    runs = select(study, args.only, args.seeds, args.budgets)
    train_script = Path(__file__).resolve().with_name('train.py')
    made = Sweep(study, runs, work_dir, train_script, resources)
    if args.dry_run:
        return print_plan(made)
    return run_sweep(made, args.retry_failed)


def main() -> int:
    args = parse_args()
    # Concurrent runs share the cores, and threads that wait for each other spin.
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, (os.cpu_count() or 1) // args.jobs)))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    from mmsmca.errors import command

    return command(sweep)(args)


if __name__ == '__main__':
    sys.exit(main())
