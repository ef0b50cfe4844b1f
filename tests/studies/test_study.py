"""Studies: what is refused, and what identifies a run."""

import json
from functools import cache
from pathlib import Path

import pytest
from mmengine.config import Config
from utils import ROOT

from mmsmca.studies.calibration import conditions
from mmsmca.studies.record import StudyError
from mmsmca.studies.study import digest, load_study, study_configs

STUDIES = sorted((ROOT / 'configs/studies').glob('*.py'))

CONFIG = """
model = dict(num_queries=25, layers=[dict(width=8)])
randomness = dict(seed=7, deterministic=True)
"""


def write_study(folder: Path, **changes: object) -> Path:
    """A study of two experiments; None drops a key."""
    (folder / 'small.py').write_text(CONFIG)
    content = dict(
        baseline='plain',
        seeds=[0, 1],
        experiments=[
            dict(name='plain', config='small.py'),
            dict(name='wide', config='small.py', cfg_options={'model.layers.0.width': 16}),
        ],
    )
    content.update(changes)
    path = folder / 'study.py'
    path.write_text('\n'.join(f'{k} = {v!r}' for k, v in content.items() if v is not None))
    return path


def experiment(**changes: object) -> list[dict]:
    entry = dict(name='plain', config='small.py')
    entry.update(changes)
    return [{key: value for key, value in entry.items() if value is not None}]


WRONG = {
    'wrong key': (
        dict(seed=3),
        'seed: unknown key. Known: baseline, budgets, chosen, experiments, seeds',
    ),
    'other baseline': (
        dict(baseline='detr'),
        "baseline: 'detr' is not an experiment of this study (plain, wide)",
    ),
    'experiment as string': (dict(experiments=['plain']), 'experiments.0: Input should be'),
    'wrong key of an experiment': (
        dict(experiments=experiment(cfg_option={})),
        'experiments.0.cfg_option: unknown key. Known: cfg_options, config, name',
    ),
    'config that is not there': (
        dict(experiments=experiment(config='smal.py')),
        'smal.py does not exist. The path is relative to the study',
    ),
    'an overlay that is not there': (
        dict(experiments=experiment(config=['small.py', 'data.py'])),
        'data.py does not exist. The path is relative to the study',
    ),
    'name that leaves the folder': (
        dict(experiments=experiment(name='../plain')),
        "experiments.0.name: '../plain' must start with a letter or digit",
    ),
    'one name twice': (
        dict(experiments=experiment() + experiment()),
        "experiments: 'plain' is listed twice. Remove one",
    ),
    'cfg_options beside the config': (
        dict(experiments=experiment(cfg_options={'modle.num_queries': 3})),
        "'modle.num_queries' matches nothing in",
    ),
    'misspelt key of the config': (
        dict(experiments=experiment(cfg_options={'optim_wraper': dict(clip_grad=None)})),
        'cfg_options optim_wraper: the config has no optim_wraper; did you mean optim_wrapper?',
    ),
    'cfg_options beyond a list': (
        dict(experiments=experiment(cfg_options={'model.layers.1.width': 3})),
        "'model.layers.1.width' matches nothing in",
    ),
    'seed twice': (dict(seeds=[1, 1]), 'seeds: 1 is listed twice'),
    'seed that is true': (dict(seeds=[True]), 'seeds.0: Input should be a valid integer'),
}


@pytest.mark.parametrize('case', WRONG)
def test_wrong_studies_are_refused(case, tmp_path):
    changes, message = WRONG[case]
    path = write_study(tmp_path, **changes)
    with pytest.raises(StudyError) as error:
        load_study(path)
    assert message in str(error.value)
    assert str(error.value).startswith(f'{path}: ') and '\n' not in str(error.value)


def test_missing_and_broken_files(tmp_path):
    with pytest.raises(StudyError, match='no such file. Studies are in configs/studies'):
        load_study(tmp_path / 'none.py')
    broken = tmp_path / 'broken.py'
    broken.write_text('baseline = ')
    with pytest.raises(StudyError, match='cannot be read as a config'):
        load_study(broken)


def test_runs_have_the_options_and_the_seed(tmp_path):
    runs = load_study(write_study(tmp_path)).runs
    assert [(run.experiment, run.seed) for run in runs] == [
        ('plain', 0),
        ('wide', 0),
        ('plain', 1),
        ('wide', 1),
    ]
    assert [run.cfg.model.layers[0].width for run in runs] == [8, 16, 8, 16]
    assert runs[2].cfg.randomness.to_dict() == dict(seed=1, deterministic=True)


def test_every_seed_has_its_initial_weights(tmp_path):
    start = experiment(cfg_options={'load_from': 'start-{seed}.pth'})
    runs = load_study(write_study(tmp_path, experiments=start)).runs
    assert [run.cfg.load_from for run in runs] == ['start-0.pth', 'start-1.pth']


def test_config_files_are_merged_in_order(tmp_path):
    """A data set over a detector: keys merge, ``_delete_`` replaces, cfg_options come last."""
    (tmp_path / 'data.py').write_text(
        "model = dict(num_queries=7)\nrandomness = dict(_delete_=True, diff=1)\nroot = 'digits'"
    )
    both = experiment(config=['small.py', 'data.py'], cfg_options={'model.layers.0.width': 16})
    cfg = load_study(write_study(tmp_path, experiments=both)).runs[0].cfg
    assert cfg.to_dict() == dict(
        model=dict(num_queries=7, layers=[dict(width=16)]),
        randomness=dict(diff=1, seed=0),
        root='digits',
    )
    (tmp_path / 'data.py').write_text('randomness = 3\nmodel = dict(num_queries=dict(a=1))')
    with pytest.raises(StudyError, match=r'data.py cannot be merged over .*small.py: num_queries'):
        load_study(tmp_path / 'study.py')


def test_names_with_an_underscore_are_the_files_own(tmp_path):
    path = write_study(tmp_path)
    expected = [run.id for run in load_study(path).runs]
    path.write_text(f'_o = dict(a=1)\n{path.read_text()}')
    assert [run.id for run in load_study(path).runs] == expected


def test_a_run_is_its_resolved_config(tmp_path):
    ids = [run.id for run in load_study(write_study(tmp_path)).runs]
    assert len(set(ids)) == 4
    # Name and order of what says the same do not matter; what it says does.
    renamed = [
        dict(name='wider', config='small.py', cfg_options={'model.layers.0.width': 16}),
        dict(name='plain', config='small.py', cfg_options={'model.num_queries': 25}),
    ]
    again = [run.id for run in load_study(write_study(tmp_path, experiments=renamed)).runs]
    assert again == [ids[1], ids[0], ids[3], ids[2]]
    (tmp_path / 'small.py').write_text(CONFIG.replace('25', '26'))
    study = tmp_path / 'study.py'
    study.write_text(study.read_text().replace("{'model.num_queries': 25}", '{}'))
    assert not set(again) & {run.id for run in load_study(study).runs}


@pytest.fixture(scope='module')
def read_once():
    """Config files of the package, which take a second each, are read once for all studies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Config, 'fromfile', cache(Config.fromfile))
        yield


@pytest.mark.usefixtures('read_once')
@pytest.mark.parametrize('path', STUDIES, ids=lambda path: path.stem)
def test_studies_of_the_package(path, tmp_path):
    calibration = tmp_path / 'calibration.json'
    measured = {
        name: dict(config=digest(cfg), seconds=0.1 + 0.01 * i)
        for i, (name, cfg) in enumerate(study_configs(path).items())
    }
    calibration.write_text(json.dumps(dict(conditions(), experiments=measured)))
    study = load_study(path, calibration=calibration)
    assert len({run.id for run in study.runs}) == len(study.runs)
    trained = sum(max(1, len(run.budgets)) for run in study.runs)
    assert trained == len(study.experiments) * len(study.seeds) * max(1, len(study.budgets))


COMMON = dict(
    coco=('train_dataloader', 'param_scheduler'),
    shapes=(
        'train_dataloader',
        'val_dataloader',
        'test_dataloader',
        'val_evaluator',
        'test_evaluator',
        'param_scheduler',
        'train_cfg',
        'default_hooks',
        'randomness',
    ),
)


def _without_scopes(node: object) -> object:
    """Less the ``_scope_`` that MMEngine writes into what comes from ``mmdet::``."""
    if isinstance(node, dict):
        return {key: _without_scopes(value) for key, value in node.items() if key != '_scope_'}
    return [_without_scopes(value) for value in node] if isinstance(node, list) else node


@pytest.mark.usefixtures('read_once')
@pytest.mark.parametrize(
    ('data', 'name'), [('coco', 'head_to_head'), ('shapes', 'head_to_head_shapes')]
)
def test_head_to_head_has_one_recipe(data, name):
    cfgs = study_configs(ROOT / f'configs/studies/{name}.py').values()
    first, *others = [Config(_without_scopes(cfg.to_dict())) for cfg in cfgs]
    for cfg in others:
        for key in COMMON[data]:
            assert cfg[key] == first[key], key
        assert cfg.optim_wrapper.optimizer == first.optim_wrapper.optimizer
        assert cfg.optim_wrapper.clip_grad == first.optim_wrapper.clip_grad
        assert cfg.auto_scale_lr.base_batch_size == first.auto_scale_lr.base_batch_size
        assert cfg.model.num_queries == first.model.num_queries
        assert cfg.train_cfg.get('max_epochs') == first.train_cfg.get('max_epochs')
        assert cfg.model.test_cfg == first.model.test_cfg
        assert {key: cfg.model.backbone[key] for key in ('type', 'depth', 'init_cfg')} == {
            key: first.model.backbone[key] for key in ('type', 'depth', 'init_cfg')
        }
