"""Format a report as Markdown and LaTeX, and as CSV and JSON for programs."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from mmsmca.studies.record import to_json

from .results import Report
from .statistics import Numbers
from .tables import DASH, Table

LATEX = str.maketrans(
    {character: f'\\{character}' for character in '&%$#_{}'}
    | {'^': r'\textasciicircum{}', '~': r'\textasciitilde{}', '`': ''}
)


def markdown(report: Report, tables: Sequence[Table], figures: Sequence[str] = ()) -> str:
    """Format tables, figures and the list of unreadable files as Markdown.

    Args:
        report: The report.
        tables: Tables of :func:`.tables.tables`.
        figures: Names of image files in the same folder.
    """
    parts = [f'# {report.study}']
    for table in tables:
        rows = [[cell.replace('|', r'\|') for cell in row] for row in table.rows]
        text = tabulate(rows, table.head, tablefmt='github', disable_numparse=True)
        parts += filter(None, [f'## {table.title}', text, table.note])
    parts += [f'![{Path(name).stem.replace("_", " ")}]({name})' for name in figures]
    if report.problems:
        parts += ['## Left out', '\n'.join(f'- {problem}' for problem in report.problems)]
    return '\n\n'.join(parts) + '\n'


def latex(tables: Sequence[Table]) -> str:
    """Format the tables as LaTeX, which needs the package booktabs."""
    parts = ['% \\usepackage{booktabs}']
    for table in tables:
        body = tabulate(table.rows, table.head, tablefmt='latex_booktabs', disable_numparse=True)
        caption = f'{table.title}. {table.note}'.translate(LATEX)
        lines = ['\\begin{table}', '\\centering', f'\\caption{{{caption}}}',
                 f'\\label{{tab:{table.name}}}', body, '\\end{table}']  # fmt: skip
        parts.append('\n'.join(lines))
    text = '\n\n'.join(parts) + '\n'
    for character, command in (('±', r'$\pm$'), ('−', '$-$'), (DASH, '--')):
        text = text.replace(character, command)
    return re.sub(r'\bAP\\_([SML])\b', r'AP$_{\1}$', re.sub(r'\bAP(50|75)\b', r'AP$_{\1}$', text))


def json_text(report: Report, numbers: Sequence[Numbers]) -> str:
    """Format the report's data, from which it can be rewritten, and its numbers as JSON."""
    units = dict(AP='0 to 1', seconds='training, without evaluations', memory='MiB')
    content = dict(units=units, **to_json(report), numbers=[to_json(of) for of in numbers])
    for of, entry in zip(numbers, content['numbers'], strict=True):
        if of.difference:
            entry['difference']['supported'] = of.difference.supported
    return json.dumps(content, indent=1) + '\n'


def csv_text(report: Report, numbers: Sequence[Numbers]) -> str:
    """Format the numbers as CSV, a row per experiment: APs between 0 and 1, seconds, MiB."""
    rows: list[dict[str, Any]] = []
    final = next(of.ap for of in numbers if of.name == report.baseline)
    for of in numbers:
        values = of.final | {
            key: getattr(of, key) for key in ('iteration_seconds', 'total_seconds')
        }
        row: dict[str, Any] = dict(study=report.study, experiment=of.name, seeds=of.seeds)
        for name, number in values.items():
            row |= {f'{name}_{key}': getattr(number, key, None) for key in ('mean', 'std')}
        for key in ('mean', 'low', 'high', 'p', 'p_holm', 'supported'):
            row[f'AP_difference_{key}'] = getattr(of.difference, key, None)
        for level in of.reached:
            label = 'baseline' if level.AP == final else f'{level.AP:.4g}'
            row[f'{report.unit}_to_AP_{label}'] = level.step
        for key in ('peak_memory_mib', 'parameters', 'flops', 'latency_ms'):
            row[key] = getattr(of, key)
        row['published_COCO_AP'] = of.published and of.published.metrics['AP']
        row['published_epochs'] = of.published and of.published.epochs
        rows.append(row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()
