"""The sources execute nothing that a file or a command line holds, as docs/security.md says."""

import ast
from pathlib import Path

import pytest
from utils import ROOT

SOURCES = sorted(
    path
    for folder in ('mmsmca', 'tools', 'configs', 'requirements')
    for path in (ROOT / folder).rglob('*.py')
) + [ROOT / 'hatch_build.py']
BUILTINS = {'eval', 'exec', 'compile', '__import__'}
SHELLS = {
    *('os.system', 'os.popen', 'subprocess.getoutput', 'subprocess.getstatusoutput'),
    'asyncio.create_subprocess_shell',
}
PROCESSES = {
    f'subprocess.{name}' for name in ('run', 'Popen', 'call', 'check_call', 'check_output')
}
PICKLES = {'pickle', 'cPickle', '_pickle', 'dill', 'cloudpickle', 'joblib', 'shelve', 'marshal'}
# Exceptions are no danger.
HARMLESS = {'pickle.UnpicklingError', 'pickle.PicklingError'}


def dangers(source: str) -> list[str]:
    """What a piece of Python code must not do, with the line it does it in."""
    tree = ast.parse(source)
    names = imported_names(tree)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = full_name(node, names)
            if name.split('.')[0] in PICKLES and '.' in name and name not in HARMLESS:
                found.append(f'{node.lineno}: {name}')
        if isinstance(node, ast.Call):
            name = full_name(node.func, names)
            options = {option.arg: option.value for option in node.keywords}
            if (
                name in BUILTINS | SHELLS
                or (name == 'torch.load' and not is_constant(options.get('weights_only'), True))
                or ('shell' in options and not is_constant(options['shell'], False))
                # A command is a list: words of the user stay words.
                or (name in PROCESSES and node.args and is_text(node.args[0]))
                or (name == 'yaml.load' and 'Safe' not in ast.unparse(node))
                or (name == 'numpy.load' and 'allow_pickle' in options)
            ):
                found.append(f'{node.lineno}: {ast.unparse(node)}')
    return found


def imported_names(tree: ast.AST) -> dict[str, str]:
    """Full names of what is imported under another: ``np`` is ``numpy``."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names |= {a.asname or a.name: f'{node.module}.{a.name}' for a in node.names}
    return names


def full_name(node: ast.AST, names: dict[str, str]) -> str:
    if isinstance(node, ast.Attribute):
        return f'{full_name(node.value, names)}.{node.attr}'
    return names.get(node.id, node.id) if isinstance(node, ast.Name) else ''


def is_constant(node: ast.AST | None, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.JoinedStr) or (
        isinstance(node, ast.Constant) and isinstance(node.value, str)
    )


def test_there_are_sources():
    names = {path.relative_to(ROOT).as_posix() for path in SOURCES}
    assert {'mmsmca/checks/keys.py', 'tools/train.py', 'hatch_build.py'} <= names


@pytest.mark.parametrize('path', SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_source(path: Path):
    assert dangers(path.read_text(encoding='utf-8')) == []


@pytest.mark.parametrize(
    'source',
    [
        'eval(text)',
        'exec(text)',
        '__import__(name)',
        'import pickle\npickle.load(file)',
        'import pickle as p\np.Unpickler(file)',
        'from pickle import loads\nloads(data)',
        'import joblib\njoblib.load(file)',
        'import torch\ntorch.load(path)',
        'import torch\ntorch.load(path, weights_only=False)',
        'import torch\ntorch.load(path, weights_only=trusted)',
        'from torch import load\nload(path)',
        'import os\nos.system(text)',
        'from os import popen\npopen(text)',
        'import subprocess\nsubprocess.run(command, shell=True)',
        'import subprocess as sp\nsp.run(command, shell=shell)',
        "import subprocess\nsubprocess.run(f'rm {path}')",
        'import subprocess\nsubprocess.getoutput(text)',
        'import yaml\nyaml.load(file)',
        'import numpy as np\nnp.load(path, allow_pickle=True)',
    ],
)
def test_danger_is_found(source: str):
    assert len(dangers(source)) >= 1


@pytest.mark.parametrize(
    'source',
    [
        'model.eval()',
        'import torch\ntorch.load(path, weights_only=True)',
        "import subprocess\nsubprocess.run(['git', 'describe', name])",
        'import pickle\ntry:\n    pass\nexcept pickle.UnpicklingError:\n    pass',
        'import numpy as np\nnp.load(path)',
        'import yaml\nyaml.load(file, Loader=yaml.SafeLoader)',
        'import re\nre.compile(text)',
    ],
)
def test_harmless_code_passes(source: str):
    assert dangers(source) == []
