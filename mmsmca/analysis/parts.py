"""A long measurement in parts: each in a process of its own, and kept as soon as it is done."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from . import benchmarks


class Section(NamedTuple):
    """What a table of the page is about.

    Attributes:
        title: Heading.
        text: What is measured, in Markdown.
        columns: Head of every column, by key of the rows.
    """

    title: str
    text: str
    columns: dict[str, str]


class Part(NamedTuple):
    """What is measured at a time.

    Attributes:
        section: Key of the section that it belongs to.
        name: Tells it from all others.
        measure: A module's function that returns rows, each with its ``outcome``.
        arguments: Of that function.
    """

    section: str
    name: str
    measure: Callable[..., list[dict]]
    arguments: tuple


def measure_parts(parts: Sequence[Part], path: Path, settings: dict) -> list[dict]:
    """Measure what is not measured yet, and what failed before; what memory lacked is a result.

    Args:
        parts: What to measure, in this order.
        path: JSON file with the rows, written after every part.
        settings: What :func:`.benchmarks.settings` gives.

    Returns:
        The rows of all parts, with the settings, ``section`` and ``part``.

    Raises:
        UserError: If the file is there with rows that were measured otherwise.
    """
    measured: dict[str, list[dict]] = {}
    for row in benchmarks.kept_rows(path, settings):
        measured.setdefault(row['part'], []).append(row)
    for number, part in enumerate(parts, start=1):
        progress = f'{number}/{len(parts)} {part.name}'
        if part.name in measured and not benchmarks.failures(measured[part.name]):
            print(f'{progress}: measured before')
            continue
        print(f'{progress}: being measured', flush=True)
        common = dict(settings, section=part.section, part=part.name)
        measured[part.name] = [{**row, **common} for row in _measure(part)]
        benchmarks.write_json(path, [row for rows in measured.values() for row in rows])
    return [row for part in parts for row in measured[part.name]]


def _measure(part: Part) -> list[dict]:
    """Rows of a part. An error on a GPU may leave its process useless: it has one of its own."""
    row: dict = {}
    with benchmarks.outcome_in(row):
        return benchmarks.in_own_process(part.measure, *part.arguments)
    return [row]


def page(title: str, sections: dict[str, Section], rows: Sequence[dict], settings: dict) -> str:
    """Write rows as a page of Markdown.

    Args:
        title: Heading of the page.
        sections: By key, in the order of the page.
        rows: What :func:`measure_parts` returns.
        settings: What all rows have in common.
    """
    lines = [f'# {title}', '', *(f'- {key}: {value}' for key, value in settings.items())]
    for key, section in sections.items():
        of_section = [row for row in rows if row['section'] == key]
        columns = {'part': 'part', **section.columns, 'outcome': 'outcome'}
        table = benchmarks.markdown_table(of_section, columns)
        lines += ['', f'## {section.title}', '', section.text, '', table]
    return '\n'.join(lines) + '\n'
