"""The tools draw their pictures, and name what is wrong."""

import importlib.util
import sys
from pathlib import Path

import pytest
from matplotlib.image import imread
from utils import ROOT


def run_tool(monkeypatch, name, *arguments):
    """Run a tool in this process; its exit code."""
    spec = importlib.util.spec_from_file_location(name, ROOT / 'tools' / f'{name}.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setattr(sys, 'argv', [f'{name}.py', *map(str, arguments)])
    return tool.main()


@pytest.mark.parametrize('name', ['smca', 'multi', 'dino'])
def test_visualize_attention_writes_its_pictures(name, workplace, monkeypatch, tmp_path, capsys):
    image = workplace / 'shapes/val/000001.png'
    files = [workplace / f'{name}.py', workplace / f'{name}.pth', image]
    assert run_tool(monkeypatch, 'visualize_attention', *files, '--out', tmp_path, '--best', 1) == 0
    printed = capsys.readouterr().out.split()[-5:]
    names = ['detections.png', 'summary.png', 'summary.svg', 'row_1.png', 'row_1.svg']
    assert printed == [str(tmp_path / name) for name in names]
    for path in printed:
        if path.endswith('.png'):
            assert imread(path)[..., :3].std() > 0.05  # something is drawn
        else:
            assert '</svg>' in Path(path).read_text()


@pytest.mark.parametrize(
    ('config', 'checkpoint', 'image', 'more', 'message'),
    [
        ('smca.py', 'gone.pth', '000001.png', [], 'gone.pth does not exist'),
        ('gone.py', 'smca.pth', '000001.png', [], 'gone.py does not exist'),
        ('smca.py', 'detr.pth', '000001.png', [], 'detr.pth'),
        ('smca.py', 'smca.pth', 'gone.png', [], 'gone.png does not exist'),
        ('smca.py', 'smca.pth', '000001.png', ['--queries', 25], 'query 25 does not exist'),
        ('smca.py', 'smca.pth', '000001.png', ['--layer', 3], 'layer 3 does not exist'),
        ('smca.py', 'smca.pth', '000001.png', ['--out', __file__], '.py is a file'),
        ('detr.py', 'detr.pth', '000001.png', [], 'no spatial prior'),
    ],
)
def test_visualize_attention_names_what_is_wrong(
    config, checkpoint, image, more, message, workplace, monkeypatch, tmp_path, capsys
):
    files = [workplace / config, workplace / checkpoint, workplace / 'shapes/val' / image]
    out = ['--out', tmp_path / 'out', *more]
    assert run_tool(monkeypatch, 'visualize_attention', *files, *out) == 2
    last_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert last_line.startswith('visualize_attention.py: error: ') and message in last_line
    assert not (tmp_path / 'out').exists()
