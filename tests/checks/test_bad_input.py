"""Configs, options and command lines that are refused: what is said, with which exit code.

Nothing below the folder of a test changes meanwhile. Values of the model are in ``test_models.py``,
what a run itself would refuse in ``test_trial.py``.
"""

import runpy
import sys
from argparse import Namespace
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from runs import assert_names, model_state, on_data, save_checkpoint
from utils import ROOT, load_config

from mmsmca.checks.config import load_config as load_file
from mmsmca.checks.preflight import check_run
from mmsmca.errors import ConfigError

# name: (changed keys, script, words of the message)
VALUES = {
    'no model': ({'model': None}, 'train', ["no key 'model'", 'complete config']),
    'no optimiser': ({'optim_wrapper': None}, 'train', ['no optim_wrapper', 'inherit']),
    'no evaluator': ({'test_evaluator': None}, 'test', ['no test_evaluator', 'inherit']),
    'validation by halves': ({'val_cfg': None}, 'train', ['no val_cfg', 'Set it']),
    'batch size in quotes': (
        {'train_dataloader.batch_size': '8'},
        'train',
        ["train_dataloader.batch_size is '8'", 'an integer from 1'],
    ),
    'class listed twice': (
        {'train_dataloader.dataset.metainfo.classes': ('disc', 'disc')},
        'train',
        ['train_dataloader.dataset.metainfo.classes', 'disc more than once', 'List every'],
    ),
    'zero interval': (
        {'default_hooks.logger.interval': 0},
        'train',
        ['default_hooks.logger.interval is 0', 'from 1'],
    ),
    'clipping to nothing': (
        {'optim_wrapper.clip_grad.max_norm': 0},
        'train',
        ['optim_wrapper.clip_grad.max_norm is 0', 'positive'],
    ),
    'classes misspelt': (
        {'train_dataloader.dataset.metainfo.clases': ('disc',)},
        'train',
        ['train_dataloader.dataset.metainfo.clases', 'Rename it to classes'],
    ),
    'determinism in quotes': (
        {'randomness': dict(seed=0, deterministic='False')},
        'train',
        ["randomness.deterministic is 'False'", 'True or False'],
    ),
    'unknown optimizer': (
        {'optim_wrapper.optimizer.type': 'AdamWW'},
        'train',
        ['optim_wrapper.optimizer.type: nothing is called AdamWW', 'did you mean AdamW?'],
    ),
    'strategy of another runner': (
        {'strategy': dict(type='DDPStrategy')},
        'train',
        ["strategy: MMEngine's Runner does not read it", 'Leave it out'],
    ),
    'imports without this package': (
        {'custom_imports': dict(imports=['json'])},
        'train',
        ["lacks 'mmsmca'", "dict(imports=['mmsmca', 'json'])"],
    ),
}

# Keys that nothing reads, down to the leaves: (key, value, the name that was meant)
MISSPELT = [
    ('train_dataloader.batchsize', 2, 'batch_size'),
    ('train_dataloader.sampler.shufle', True, 'shuffle'),
    ('train_dataloader.dataset.filter_cfg.filter_empty_gts', True, 'filter_empty_gt'),
    ('train_dataloader.dataset.filter_cfg.min_sise', 32, 'min_size'),
    ('train_dataloader.dataset.pipeline.2.scales', (64, 64), 'scale'),
    ('val_dataloader.num_worker', 0, 'num_workers'),
    ('val_evaluator.ann_files', 'a.json', 'ann_file'),
    ('optim_wrapper.clip_gradd', dict(max_norm=1), 'clip_grad'),
    ('optim_wrapper.clip_grad.max_nrom', 1, 'max_norm'),
    ('optim_wrapper.optimizer.weight_decy', 0.1, 'weight_decay'),
    ('optim_wrapper.paramwise_cfg', dict(_delete_=True, norm_decay_mul=0), 'norm_decay_mult'),
    (
        'optim_wrapper.paramwise_cfg',
        dict(_delete_=True, custom_keys=dict(backbonee={})),
        'backbone',
    ),
    (
        'optim_wrapper.paramwise_cfg',
        dict(_delete_=True, custom_keys=dict(backbone=dict(lr_mul=0.1))),
        'lr_mult',
    ),
    ('param_scheduler.1.milestone', [1], 'milestones'),
    ('default_hooks.checkpoint.intervall', 1, 'interval'),
    ('default_hooks.logger.intervall', 1, 'interval'),
    ('train_cfg.max_epoch', 3, 'max_epochs'),
    ('log_processor.windw_size', 3, 'window_size'),
    ('visualizer.vis_backend', [], 'vis_backends'),
    ('env_cfg.mp_cfg.mp_start_methd', 'fork', 'mp_start_method'),
    ('env_cfg.cudnn_benchmrk', True, 'cudnn_benchmark'),
    ('randomness.sed', 1, 'seed'),
    ('auto_scale_lr.base_batchsize', 16, 'base_batch_size'),
    ('custom_hook', [], 'custom_hooks'),
    ('model_wrapper_cfg.find_unused_parameter', True, 'find_unused_parameters'),
    ('compile.bakend', 'eager', 'backend'),
    ('model.test_cfg.max_per_image', 5, 'max_per_img'),
    ('model.train_cfg.assigners', {}, 'assigner'),
    ('model.encoder.num_layer', 1, 'num_layers'),
    ('model.num_query', 1, 'num_queries'),
    ('model.decoder.layer_cfg.spatial_prior_cfg.betas', 1, 'beta'),
    ('model.decoder.layer_cfg.ffn_cfg.feedforward_channel', 1, 'feedforward_channels'),
]


@pytest.mark.parametrize('case', VALUES)
def test_value(case: str, cfg: Config, refused):
    changes, script, words = VALUES[case]
    for key, value in changes.items():
        if value is None:
            cfg.pop(key)
        else:
            cfg.merge_from_dict({key: value})
    refused(ConfigError, script, *words, check=check_run)


@pytest.mark.parametrize('key', MISSPELT, ids=lambda case: case[0])
def test_key_that_nothing_reads(key: tuple, cfg: Config, refused):
    place, value, meant = key
    cfg.merge_from_dict({place: value})
    words = place.split('.')[-1], f'did you mean {meant}?'
    refused(ConfigError, 'train', *words, check=check_run)


def test_key_of_the_denoising_that_nothing_reads(root: Path):
    cfg = on_data(load_config('small/smca-dino_r18w16_1xb4-3ki_shapes192.py'), root)
    cfg.model.dn_cfg.group_cfg['num_dn_querys'] = 10
    with pytest.raises(ConfigError, match=r'dn_cfg\.group_cfg\.num_dn_querys.*num_dn_queries\?'):
        check_run(cfg, 'train')


# name: (text of the config, options, words of the message)
FILES = {
    'syntax': ('model = dict(', {}, ['bad.py cannot be read', 'Correct the file']),
    'import that is not there': (
        "custom_imports = dict(imports=['mmsmcaa'])",
        {},
        ['bad.py cannot be read', 'mmsmcaa'],
    ),
    'misspelt section': (
        'train_dataloader = dict()',
        {'train_dataloder.batch_size': 2},
        ['--cfg-options train_dataloder.batch_size', 'did you mean train_dataloader?'],
    ),
    'key below a number': (
        'train_cfg = dict(max_epochs=3)',
        {'train_cfg.max_epochs.x': 2},
        ['--cfg-options train_cfg.max_epochs.x=2', 'print_config'],
    ),
    'place outside a list': (
        'custom_hooks = [dict(a=1)]',
        {'custom_hooks.3.a': 2},
        ['--cfg-options custom_hooks.3.a=2', 'Correct the key'],
    ),
    'number that is used up': (
        'max_epochs = 7\ntrain_cfg = dict(max_epochs=max_epochs)\n'
        'param_scheduler = [dict(end=max_epochs)]\nmodel = dict(num_heads=7)',
        {'max_epochs': 5},
        ['max_epochs is a variable', 'Set', ': train_cfg.max_epochs, param_scheduler.0.end.'],
    ),
    'path that is used up': (
        "root = '/data/'\nval_evaluator = dict(ann_file=root + 'val.json')",
        {'root': '/nowhere/'},
        ['root is a variable', 'val_evaluator.ann_file'],
    ),
    'part of a dict that is used up': (
        'info = dict(classes=1)\ntrain_dataloader = dict(dataset=dict(metainfo=info))',
        {'info.classes': 2},
        ['info is a variable', 'train_dataloader.dataset.metainfo'],
    ),
    'variable of no effect': ('a = 1', {'a': 2}, ['a is a variable', 'Leave it out']),
}


@pytest.mark.parametrize('case', FILES)
def test_config_file_or_option(case: str, tmp_path: Path, untouched):
    text, options, words = FILES[case]
    (tmp_path / 'bad.py').write_text(text)
    with untouched(), pytest.raises(ConfigError) as caught:
        load_file(Namespace(config=str(tmp_path / 'bad.py'), cfg_options=options))
    assert '\n' not in str(caught.value)
    assert_names(str(caught.value), *words)


def test_config_of_a_checkpoint(tmp_path: Path):
    (tmp_path / 'a.py').write_text('model = dict(x=1)')
    args = Namespace(config=str(tmp_path / 'a.py'), checkpoint='c.pth', cfg_options={'model.x': 2})
    cfg = load_file(args)
    assert (cfg.model.x, cfg.load_from, cfg.resume) == (2, 'c.pth', False)


# name: (tool, arguments, words of the message); every one ends with exit code 2.
COMMANDS = {
    'train nothing': ('train', [], ['required: config']),
    'train into a file': (
        'train',
        ['config.py', '--work-dir', 'config.py'],
        ['--work-dir config.py is a file', 'Specify a folder'],
    ),
    'train a folder': ('train', ['data'], ['config data does not exist', 'path of a config']),
    'train with an unknown runner': (
        'train',
        ['config.py', '--cfg-options', 'runner_type=Runer'],
        ['runner_type: nothing is called Runer', 'Leave it out'],
    ),
    'train a model with a wrong value': (
        'train',
        ['config.py', '--cfg-options', 'model.decoder.layer_cfg.spatial_prior_cfg.beta=0'],
        ['model', 'spatial_prior_cfg.beta=0', 'positive', 'runner_type=Runner starts without'],
    ),
    'test what does not fit': (
        'test',
        ['config.py', 'wide.pth'],
        ['wide.pth is from another model', 'Use the config'],
    ),
    'test into a file of another kind': (
        'test',
        ['config.py', 'wide.pth', '--out', 'found.json'],
        ['--out found.json', '.pkl'],
    ),
    'too small shapes': ('make_shapes', ['set', '--size', '31'], ['size is 31', 'at least 32']),
    'shapes over other data': ('make_shapes', ['data'], ['data exists', 'choose another folder']),
    'shapes below a file': ('make_shapes', ['config.py/set'], ['config.py/set', 'Not a directory']),
    'benchmark what is not there': (
        'analysis_tools/benchmark_model',
        ['gone.py'],
        ['config gone.py does'],
    ),
    'benchmark a grid of one side': (
        'analysis_tools/benchmark_attention',
        ['--grids', '25', '--json', 'rows.json'],
        ['--grids', "'25'"],
    ),
}


@pytest.mark.parametrize('case', COMMANDS)
def test_command_line(case: str, folder: Path, untouched, monkeypatch, capfd):
    tool, arguments, words = COMMANDS[case]
    state = model_state(Config.fromfile('config.py').model)
    state['query_embedding.weight'] = torch.zeros(300, 128)
    save_checkpoint(folder / 'wide.pth', state_dict=state)
    monkeypatch.setattr(sys, 'argv', [f'{tool}.py', *arguments])
    with untouched(), pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(ROOT / f'tools/{tool}.py'), run_name='__main__')
    assert exit_info.value.code == 2
    error = capfd.readouterr().err
    assert 'Traceback' not in error
    assert_names(error.strip().splitlines()[-1], *words)
