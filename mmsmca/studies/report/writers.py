"""Format a report as Markdown and LaTeX, and as CSV and JSON for programs."""

import json
import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel
from tabulate import tabulate

from .logs import to_json
from .results import Report
from .statistics import Numbers
from .tables import DASH, Table

LATEX = str.maketrans(
    {character: f'\\{character}' for character in '&%$#_{}'}
    | {'^': r'\textasciicircum{}', '~': r'\textasciitilde{}', '`': ''}
)


def markdown(report: Report, tables: Sequence[Table], figures: Sequence[str] = ()) -> str:
    """Format tables, figures (image files in the same folder) and problems as Markdown."""
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
    """Format the report's runs, evaluations and numbers as JSON."""
    content: dict[str, Any] = dict(
        units=dict(AP='0 to 1', seconds='training, without evaluations', memory='MiB')
    )
    for entry in fields(report):
        content[entry.name] = _plain(getattr(report, entry.name))
    content['numbers'] = [_plain(of) for of in numbers]
    for of, entry in zip(numbers, content['numbers'], strict=True):
        if of.difference:
            entry['difference']['significant'] = of.difference.significant
    return json.dumps(content, indent=1) + '\n'


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, pd.DataFrame):
        return [to_json(row) for _, row in value.astype(object).iterrows()]
    if isinstance(value, BaseModel):
        return value.model_dump()
    if is_dataclass(value):
        return {entry.name: _plain(getattr(value, entry.name)) for entry in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, list) else value
