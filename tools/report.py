"""Report on a study, or on any of MMDetection's work directories: tables and curves.

Writes report.md, report.tex (booktabs), report.csv, report.json and the figures as PNG and SVG.

Example: python tools/report.py work_dirs/head_to_head_shapes --costs
"""

import argparse
import json
import shlex
import sys
from argparse import Namespace
from pathlib import Path

from mmsmca.errors import command
from mmsmca.files import written_whole
from mmsmca.studies.report import costs as model_costs
from mmsmca.studies.report.figures import write_figures
from mmsmca.studies.report.results import ReportError, Study, budgets_of, read_study
from mmsmca.studies.report.writers import csv_table, summary
from mmsmca.studies.report.tables import latex, markdown, tables


def parse_args() -> Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'work_dir', type=Path, help='of a study, of a run, or a folder with several runs'
    )
    parser.add_argument('--out', type=Path, help='folder for the report, default WORK_DIR/report')
    parser.add_argument(
        '--baseline', metavar='EXPERIMENT', help="default the study's, or the first by name"
    )
    parser.add_argument(
        '--compare', nargs='+', default=[], metavar='EXPERIMENT',
        help='what the others are compared to in pairs at equal training time, default the best '
        'one then, and the baseline',
    )  # fmt: skip
    parser.add_argument(
        '--ap', nargs='+', type=float, metavar='AP',
        help="APs between 0 and 1 to reach, default half, 3/4 and 9/10 of the baseline's final "
        'one, which itself always is among them',
    )  # fmt: skip
    parser.add_argument(
        '--costs', action='store_true',
        help='measure parameters, GFLOPs and latency of the models, unless WORK_DIR/costs.json '
        'has them already',
    )  # fmt: skip
    return parser.parse_args()


def check(args: Namespace, study: Study) -> None:
    """Refuse arguments that fit no experiment or no AP."""
    names = [experiment.name for experiment in study.experiments]
    for name in args.compare:
        if name not in names:
            raise ReportError(f"--compare '{name}' is none of the experiments: {', '.join(names)}")
    for ap in args.ap or []:
        if not 0 < ap < 1:
            raise ReportError(f'--ap {ap:g} is not between 0 and 1: AP 40 is 0.4')


def report(args: Namespace) -> None:
    """Read, measure if asked to, write, print; every budget of a study into a folder of its own."""
    out = args.out or args.work_dir / 'report'
    budgets = budgets_of(args.work_dir)
    for budget in budgets or [None]:
        study = read_study(args.work_dir, args.baseline, budget)
        check(args, study)
        report_study(args, study, out if budget is None else out / budget)


def report_study(args: Namespace, study: Study, out: Path) -> None:
    """Write one study's, or one budget's, report."""
    load = model_costs.load_or_measure if args.costs else model_costs.load
    costs = load(args.work_dir, study)
    found = tables(study, costs, args.ap, args.compare)
    command_line = shlex.join(['python', 'tools/report.py', *sys.argv[1:]])
    content = summary(study, costs, args.ap, args.compare, command_line)

    out.mkdir(parents=True, exist_ok=True)
    figures = write_figures(study, costs, out)
    text = markdown(found)
    pictures = [path.name for path in figures if path.suffix == '.png']
    text += ''.join(f'\n![{Path(name).stem.replace("_", " ")}]({name})\n' for name in pictures)
    if study.problems:
        text += '\n## Left out\n\n'
        text += ''.join(f'- {problem}\n' for problem in study.problems)
    for suffix, content_of_file in (
        ('md', f'# {study.name}\n\n{text}'),
        ('tex', latex(found)),
        ('csv', csv_table(content)),
        ('json', json.dumps(content, indent=1) + '\n'),
    ):
        with written_whole(out / f'report.{suffix}') as partial:
            partial.write_text(content_of_file)
    print(text)
    print(f'Written to {out}: report.md, .tex, .csv, .json, {", ".join(pictures)} (and .svg)')


@command
def main() -> None:
    report(parse_args())


if __name__ == '__main__':
    sys.exit(main())
