"""The wheel and what both mims look for in it."""

import json
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib.metadata import PathDistribution
from pathlib import Path

import pytest
import yaml
from hatchling.builders.sdist import SdistBuilder
from hatchling.builders.wheel import WheelBuilder
from packaging.requirements import Requirement
from utils import ROOT

from mmsmca import __version__

DIST_INFO = f'mmsmca-{__version__}.dist-info'
MIM_FILES = {
    str(path.relative_to(ROOT)): path.read_bytes()
    for path in (
        *(ROOT / 'configs').rglob('*'),
        *(ROOT / 'tools').rglob('*'),
        ROOT / 'model-index.yml',
    )
    if path.is_file() and path.suffix != '.pyc'
}


def run(*command: str | Path, **options) -> subprocess.CompletedProcess:
    """Run a command; its output comes as text."""
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def run_checked(*command: str | Path, **options) -> None:
    """Run a command that must succeed."""
    result = run(*command, **options)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.fixture(scope='module')
def source(tmp_path_factory) -> Path:
    """A copy of what the distribution is built from, without what runs leave in a checkout."""
    copy = tmp_path_factory.mktemp('source')
    for path in ROOT.iterdir():
        if path.name in ('mmsmca', 'configs', 'tools', 'tests', 'requirements'):
            shutil.copytree(path, copy / path.name, ignore=shutil.ignore_patterns('__pycache__'))
        elif path.is_file():
            shutil.copyfile(path, copy / path.name)
    return copy


@pytest.fixture(scope='module')
def distributions(source, tmp_path_factory) -> Path:
    """Folder with the sdist and the wheel."""
    out = tmp_path_factory.mktemp('dist')
    for builder in (SdistBuilder(str(source)), WheelBuilder(str(source))):
        assert list(builder.build(directory=str(out), versions=['standard']))
    assert not (source / 'build').exists()
    return out


@pytest.fixture(scope='module')
def wheel(distributions) -> Path:
    return distributions / f'mmsmca-{__version__}-py3-none-any.whl'


@pytest.mark.parametrize('package', ['mmsmca', DIST_INFO])
def test_wheel_has_what_mim_needs(wheel, package):
    """openmim looks in the package, onedl-mim 0.5.1 in the folder of the metadata."""
    prefix = f'{package}/.mim/'
    with zipfile.ZipFile(wheel) as archive:
        packed = {
            name.removeprefix(prefix): archive.read(name)
            for name in archive.namelist()
            if name.startswith(prefix)
        }
    assert packed == MIM_FILES


def test_wheel_has_every_module(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if re.match(r'mmsmca/(?!\.mim/)', name)}
    assert packed == {str(path.relative_to(ROOT)) for path in (ROOT / 'mmsmca').rglob('*.py')}


def test_wheel_has_the_licence(wheel):
    with zipfile.ZipFile(wheel) as archive:
        packed = archive.read(f'{DIST_INFO}/licenses/LICENSE')
    assert packed == (ROOT / 'LICENSE').read_bytes()


@pytest.mark.parametrize('stack', ['lite', 'onedl', 'openmmlab'])
def test_pins_are_within_the_optional_set(wheel, stack):
    """``make install`` and ``pip install mmsmca[...]`` agree."""
    distribution = PathDistribution(zipfile.Path(wheel, f'{DIST_INFO}/'))
    allowed = {
        requirement.name: requirement.specifier
        for requirement in map(Requirement, distribution.requires)
        if requirement.marker and requirement.marker.evaluate({'extra': stack})
    }
    lines = re.sub('#.*', '', (ROOT / f'requirements/{stack}.txt').read_text()).split()
    pins = {pin.name: pin.specifier for pin in map(Requirement, lines)}
    assert set(pins) == set(allowed)
    for name, (pin,) in pins.items():
        assert pin.operator == '=='
        assert allowed[name].contains(pin.version, prereleases=True)


def test_sdist_has_the_tests(distributions):
    folder = f'mmsmca-{__version__}'
    with tarfile.open(distributions / f'{folder}.tar.gz') as archive:
        names = set(archive.getnames())
    tests = [path.relative_to(ROOT) for path in (ROOT / 'tests').rglob('*.py')]
    assert {f'{folder}/{path}' for path in tests} <= names


def environment(folder: Path, *install: str | Path) -> Path:
    """Python of a virtual environment that sees this one's packages, with mmsmca of its own."""
    run_checked(sys.executable, '-m', 'venv', '--without-pip', folder)
    python = folder / 'bin/python'
    paths = dict(base=str(folder), platbase=str(folder))
    site_packages = Path(sysconfig.get_path('purelib', 'venv', paths))
    (site_packages / 'outer.pth').write_text(sysconfig.get_path('purelib'))
    run_checked(
        sys.executable, '-m', 'pip', '--python', python, 'install', '--no-deps', '--no-index',
        '--no-build-isolation', *install,
    )  # fmt: skip
    return python


@pytest.fixture(scope='module')
def wheel_python(wheel, tmp_path_factory) -> Path:
    return environment(tmp_path_factory.mktemp('wheel'), wheel)


@pytest.fixture(scope='module')
def editable_python(source, tmp_path_factory) -> Path:
    return environment(tmp_path_factory.mktemp('editable'), '--editable', source)


# Says as JSON what mim would run, what it lists, and what a config elsewhere inherits.
LOOK = """
import json, subprocess
from unittest.mock import patch
import mim
with patch('subprocess.check_output', return_value=b''), patch('subprocess.check_call') as call:
    mim.train('mmsmca', 'smca_r18w16_1xb8-11e_shapes128.py', gpus=0)
rows = mim.get_model_info('mmsmca', to_dict=True)
import mmsmca
from mmengine.config import Config
cfg = Config.fromfile('mine.py')
model = [cfg.model.type, cfg.model.num_queries, cfg.model.bbox_head.num_classes]
rows = {name: [row['config'], row.get('coco/box_ap')] for name, row in rows.items()}
print('\\n' + json.dumps([call.call_args[0][0][1:3], rows, model, mmsmca.__file__]))
"""


@pytest.mark.slow
@pytest.mark.parametrize('kind', ['wheel', 'editable'])
def test_mim_and_configs_elsewhere_find_ours(kind, request, tmp_path):
    """From any folder: a config by its bare name, one that inherits it, and the model index."""
    python = request.getfixturevalue(f'{kind}_python')
    root = request.getfixturevalue('source') if kind == 'editable' else python.parents[1]
    config = 'small/smca_r18w16_1xb8-11e_shapes128.py'
    (tmp_path / 'mine.py').write_text(f"_base_ = 'mmsmca::{config}'\nmodel = dict(num_queries=7)")
    result = run(python, '-c', LOOK, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    files, rows, model, package = json.loads(result.stdout.splitlines()[-1])
    for path, name in zip(map(Path, files), ('tools/train.py', f'configs/{config}'), strict=True):
        assert path.is_relative_to(root) and path.as_posix().endswith(name)
        assert path.read_bytes() == MIM_FILES[name]
    assert Path(package).is_relative_to(root)
    assert model == ['SMCADETR', 7, 6]
    assert {name: row[0] for name, row in rows.items()} == {
        model['Name']: model['Config'] for model in models()
    }
    assert rows['smca_r50_8xb2-50e_coco'][1] == 41.0


def metafiles() -> dict[str, dict]:
    """Metafiles by path, as the model index imports them."""
    index = yaml.safe_load((ROOT / 'model-index.yml').read_text())
    return {path: yaml.safe_load((ROOT / path).read_text()) for path in index['Import']}


def models() -> list[dict]:
    return [model for metafile in metafiles().values() for model in metafile['Models']]


def test_model_index_imports_every_metafile():
    assert set(metafiles()) == {
        str(path.relative_to(ROOT)) for path in (ROOT / 'configs').rglob('metafile.yml')
    }


def test_every_config_is_listed_once():
    """The shapes configs are for trying out and belong to no published model."""
    listed = sorted(model['Config'] for model in models())
    folders = ROOT / 'configs/smca', ROOT / 'configs/smca_dino'
    configs = [path for folder in folders for path in folder.rglob('*.py')]
    assert listed == sorted(str(path.relative_to(ROOT)) for path in configs)


@pytest.mark.parametrize('model', models(), ids=lambda model: model['Name'])
def test_metafile_row(model):
    collections = {
        collection['Name']: collection
        for metafile in metafiles().values()
        for collection in metafile['Collections']
    }
    assert Path(model['Config']).stem == model['Name']
    assert (ROOT / collections[model['In Collection']]['README']).is_file()
    assert model['Metadata']['Epochs'] == int(re.search(r'-(\d+)e_', model['Name'])[1])
    # A number is never without its source, and none of them comes with weights of ours.
    assert ('Results' in model) == ('Box AP Source' in model['Metadata'])
    assert 'Weights' not in model


def test_config_names_are_unique():
    """mim finds a config by its bare name and refuses a name that it finds twice."""
    names = [path.name for path in (ROOT / 'configs').rglob('*.py')]
    assert len(names) == len(set(names))
