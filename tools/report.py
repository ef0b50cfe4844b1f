"""Report on a study, or on any MMDetection work directory, with tables and figures.

Writes report.md, report.tex (booktabs), report.csv, report.json and the figures as PNG and SVG.
Config dumps in the folder are executed.

Example: python tools/report.py work_dirs/head_to_head_shapes
"""

import argparse
import shlex
import sys
from datetime import datetime, timezone
from pathlib import Path

from mmsmca.errors import UserError, command
from mmsmca.files import atomic_write

# Slow imports are deferred until the arguments have been parsed.


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'work_dir', type=Path,
        help='that of a study or a run, or a folder with several runs',
    )  # fmt: skip
    parser.add_argument(
        '--out', type=Path, help='folder for the report; default: WORK_DIR/report'
    )  # fmt: skip
    parser.add_argument(
        '--baseline', metavar='EXPERIMENT', help="default: the study's, or the first by name"
    )
    parser.add_argument(
        '--ap', nargs='+', type=float, metavar='AP',
        help="APs to reach, between 0 and 1; default: half, 3/4 and 9/10 of the baseline's final "
        'AP, which is always included',
    )  # fmt: skip
    return parser.parse_args()


@command
def main() -> None:
    args = parse_args()
    for ap in args.ap or []:
        if not 0 < ap < 1:
            raise UserError(f'--ap {ap:g} is not between 0 and 1: AP 40 is 0.4')
    from mmsmca.studies.report.figures import write_figures
    from mmsmca.studies.report.results import read_reports
    from mmsmca.studies.report.statistics import numbers
    from mmsmca.studies.report.tables import tables
    from mmsmca.studies.report.writers import json_text, latex, markdown

    for budget, report in read_reports(args.work_dir, args.baseline).items():
        report.date = datetime.now(timezone.utc).strftime('%Y-%m-%d %H:%M UTC')
        report.command = shlex.join(['python', 'tools/report.py', *sys.argv[1:]])
        out = (args.out or args.work_dir / 'report') / budget
        found = numbers(report, args.ap)
        rows = tables(report, found)
        out.mkdir(parents=True, exist_ok=True)
        figures = [path.name for path in write_figures(report, found, out) if path.suffix == '.png']
        text = markdown(report, rows, figures)
        for suffix, content in (
            ('md', text),
            ('tex', latex(rows)),
            ('csv', report.runs.to_csv(index=False)),
            ('json', json_text(report, found)),
        ):
            with atomic_write(out / f'report.{suffix}') as partial:
                partial.write_text(content)
        print(text)
        print(f'Written to {out}: report.md, .tex, .csv, .json, {", ".join(figures)} (and .svg)')


if __name__ == '__main__':
    sys.exit(main())
