"""Docstrings name things and write formulas as Sphinx does; the site is written in Markdown."""

import re
import textwrap
from typing import Any

import griffe

FORMULA = re.compile(r'^( *)\.\. math::(.*(?:\n\1 +\S.*|\n *(?=\n\1 +\S))*)', re.MULTILINE)
TABLE = re.compile(r'^=+ .*\n(?:.+\n)*?=+ .*\n(?:.+\n)*?=+ .*$', re.MULTILINE)
ROLE = re.compile(r':\w+:`~?\.?([^`]+)`')
LITERAL_BLOCK = re.compile(r'::$', re.MULTILINE)


class SphinxToMarkdown(griffe.Extension):
    """Translates every docstring before it is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called by Griffe for every object that it has loaded."""
        if obj.docstring:
            obj.docstring.value = to_markdown(obj.docstring.value)


def to_markdown(docstring: str) -> str:
    """Translate what our docstrings use: formulas, tables, roles, literal blocks."""
    docstring = FORMULA.sub(_formula, docstring)
    docstring = TABLE.sub(r'```text\n\g<0>\n```', docstring)
    docstring = ROLE.sub(r'`\1`', docstring)
    return LITERAL_BLOCK.sub(':', docstring)


def _formula(found: re.Match) -> str:
    indent, latex = found[1], textwrap.dedent(found[2]).strip()
    return textwrap.indent(f'```math\n{latex}\n```', indent)
