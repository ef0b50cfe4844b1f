"""The floors of the package: a module imports from its own floor and from those below."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from utils import ROOT

# From the ground up; docs/architecture.md says what each is for.
FLOORS = (
    {'errors', 'version', 'compat', 'files', 'denormals', 'operators'},
    {'models'},
    {'checkpoints', 'datasets', 'analysis', 'engine'},
    {'checks', 'launch'},
    {'visualization', 'deployment', 'studies'},
)
LEVELS = {name: level for level, floor in enumerate(FLOORS) for name in floor}
# Registers what the floors define, and so imports from several.
TOP = ROOT / 'mmsmca/__init__.py'
MODULES = sorted(path for path in (ROOT / 'mmsmca').rglob('*.py') if path != TOP)


def folder(module: str) -> str:
    """The folder, or the module beside the folders, that a module of the package belongs to."""
    return module.split('.')[1]


def name_of(path: Path) -> str:
    """Full name of a file's module."""
    return '.'.join(path.relative_to(ROOT).with_suffix('').parts)


def imports(module: str, source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of all that a module's source imports of the package, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            # Of a package itself, name_of ends in __init__: a dot leads to its folder there too.
            parents = module.split('.')[: -node.level] if node.level else []
            base = '.'.join([*parents, *([node.module] if node.module else [])])
            names = [f'{base}.{alias.name}' for alias in node.names]
        else:
            continue
        for name in names:
            if name.split('.')[0] in ('mmsmca', 'tools'):
                yield node.lineno, name


def violations(module: str, source: str) -> list[str]:
    """What a module imports and must not, one line each."""
    found = []
    for line, name in imports(module, source):
        everything = name.startswith('tools') or name in ('mmsmca', 'mmsmca.*')
        if everything or LEVELS.get(folder(name), 0) > LEVELS[folder(module)]:
            found.append(f'line {line} imports {name}')
    return found


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_nothing_imports_upward(path: Path):
    module = name_of(path)
    assert folder(module) in LEVELS, f'{module} is on no floor: add it to FLOORS'
    assert violations(module, path.read_text()) == []


@pytest.mark.parametrize(
    ('module', 'source', 'named'),
    [
        ('mmsmca.models.layers.x', 'from mmsmca.studies.sweep import Sweep', 'studies'),
        ('mmsmca.models.layers.x', 'import mmsmca.checks.preflight', 'checks'),
        ('mmsmca.models.layers.x', 'from ...engine import cpu', 'engine'),
        ('mmsmca.models.__init__', 'from ..engine import cpu', 'engine'),
        ('mmsmca.checkpoints.x', 'from mmsmca import studies', 'studies'),
        ('mmsmca.errors', 'from .models import SMCAHead', 'models'),
        ('mmsmca.engine.hooks.x', 'def f():\n    from ... import visualization', 'visualization'),
        ('mmsmca.checks.preflight', 'from .studies import sweep', 'studies'),
        ('mmsmca.studies.x', 'from mmsmca import *', '*'),
        ('mmsmca.studies.x', 'import tools.sweep', 'tools.sweep'),
    ],
)
def test_imports_upward_are_found(module: str, source: str, named: str):
    (found,) = violations(module, source)
    assert named in found


@pytest.mark.parametrize(
    ('module', 'source'),
    [
        ('mmsmca.models.layers.x', 'from .attention import y\nfrom ..detectors import z'),
        ('mmsmca.studies.report.x', 'from mmsmca.models import y\nfrom ..study import z'),
        ('mmsmca.visualization.x', 'from mmsmca import preflight\nimport torch'),
        ('mmsmca.datasets.x', 'from ..errors import DataError'),
    ],
)
def test_imports_downward_are_fine(module: str, source: str):
    assert violations(module, source) == []
