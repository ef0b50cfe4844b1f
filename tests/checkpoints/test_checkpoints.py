"""Conversion between the authors' checkpoints and ours, files and refusals included."""

import argparse
import copy
import pickle
from functools import partial
from pathlib import Path

import golden
import numpy as np
import pytest
import torch
from conversion import assert_equal_to_the_bit, convert
from mmdet.datasets import CocoDataset
from mmengine.config import ConfigDict
from mmengine.logging import HistoryBuffer
from safetensors.torch import load_file, save_file
from utils import build_detector

from mmsmca.checkpoints import files as checkpoint_files
from mmsmca.checkpoints import names as checkpoints
from mmsmca.checkpoints.files import CheckpointError, check_readable
from mmsmca.errors import UserError


def tensors(name):
    return {key: torch.from_numpy(x).float() for key, x in golden.load(name).state_dict().items()}


@pytest.fixture(scope='module')
def reference():
    return tensors('single_scale_independent')


@pytest.fixture(scope='module')
def ours(reference):
    return checkpoints.convert_reference(reference)


@pytest.mark.parametrize('name', ['single_scale_fixed', 'multi_scale_conv'])
def test_there_and_back(name, tmp_path):
    there, forth, back = (tmp_path / f'{step}.pth' for step in ('reference', 'ours', 'again'))
    expected = tensors(name)
    checkpoint_files.write(expected, there, key='model')
    checkpoint_files.write(
        checkpoints.convert_reference(checkpoint_files.read_tensors(there)), forth
    )
    again = checkpoints.convert_to_reference(checkpoint_files.read_tensors(forth))
    checkpoint_files.write(again, back, key='model')
    assert_equal_to_the_bit(torch.load(back, weights_only=True)['model'], expected)


def test_trained_counters_go_along(ours):
    # Batch norms of MMDetection count batches; the authors' frozen ones drop the counters.
    counted = {**ours, 'backbone.bn1.num_batches_tracked': torch.tensor(7)}
    there = checkpoints.convert_to_reference(counted)
    assert there['backbone.0.body.bn1.num_batches_tracked'] == 7
    assert_equal_to_the_bit(checkpoints.convert_reference(there), counted)


def test_coco_classes_keep_their_rows(reference):
    converted = checkpoints.convert_reference(reference, num_classes=80)
    rows = reference['class_embed.weight']
    # Category ids of COCO, and MMDetection's names for them.
    for category_id, name in {
        1: 'person',
        13: 'stop sign',
        27: 'backpack',
        90: 'toothbrush',
    }.items():
        index = CocoDataset.METAINFO['classes'].index(name)
        assert torch.equal(converted['bbox_head.fc_cls.weight'][index], rows[category_id])
    assert converted['bbox_head.fc_cls.bias'].shape == (80,)


def without(state_dict, part):
    return {name: x for name, x in state_dict.items() if part not in name}


def test_what_cannot_be_converted_is_named(reference, ours):
    """In both directions: unknown and missing tensors, other models, lost rows."""
    there, forth = checkpoints.convert_reference, checkpoints.convert_to_reference
    more = dict(odd=torch.zeros(1))
    eighty = there(reference, num_classes=80)
    for convert_names, state_dict, words in (
        (there, {**reference, **more}, 'tensors without a counterpart: odd'),
        (forth, {**ours, **more}, 'tensors without a counterpart: odd'),
        (there, without(reference, 'layers.1.norm4.'), 'missing under: .*decoder.layers.1.norm4'),
        (there, without(reference, 'bbox_embed.layers.0.'), 'missing under: bbox_embed.layers.0'),
        (forth, without(ours, 'layers.0.ffn.layers.1.'), 'missing under: encoder.layers.0.ffn'),
        (forth, without(ours, 'center_head'), 'missing under: decoder.center_head'),
        (there, without(reference, 'norm4'), "not one of the authors' SMCA models"),
        (forth, without(ours, 'spatial_prior'), "neither our SMCA nor the authors'"),
        (forth, {**ours, 'level_embed': torch.zeros(1)}, 'authors have no names for this archi'),
        (forth, eighty, '80 rows.*12 of which would have to be made up'),
        (partial(there, num_classes=20), reference, 'num_classes=20 with a classifier of 92 rows'),
    ):
        with pytest.raises(CheckpointError, match=words):
            convert_names(state_dict)


def test_command(reference, tmp_path):
    source, destination = tmp_path / 'authors.pth', tmp_path / 'ours.pth'
    # The authors' training script stores its arguments too.
    torch.save(dict(model=reference, args=argparse.Namespace(lr=1e-4)), source)
    done = convert(source, destination, '--num-classes', 80)
    assert done.returncode == 0, done.stderr
    assert f'all {len(reference)} tensors' in done.stdout
    assert 'class_embed.weight -> bbox_head.fc_cls.weight (80, 256), 80 of 92 rows' in done.stdout
    assert 'cannot be converted back' in done.stdout
    assert all(f'{name} -> ' in done.stdout for name in reference)
    model = build_detector(
        'smca/smca_r50_8xb2-50e_coco.py',
        dict(
            num_queries=30,
            encoder=dict(num_layers=2, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=256))),
            decoder=dict(num_layers=3, layer_cfg=dict(ffn_cfg=dict(feedforward_channels=256))),
        ),
    )
    loaded = torch.load(destination, weights_only=True)
    model.load_state_dict(loaded['state_dict'], strict=True)

    again = convert(source, destination)
    assert again.returncode == 2 and 'exists' in again.stderr
    back = convert(destination, tmp_path / 'back.pth')
    assert back.returncode == 2 and 'made up' in back.stderr and 'Traceback' not in back.stderr
    assert sorted(tmp_path.iterdir()) == [source, destination]


def test_command_finds_the_direction(reference, ours, tmp_path):
    """Over files of both kinds: what MMEngine wrote, and safetensors."""
    source = tmp_path / 'epoch_50.pth'
    history = HistoryBuffer([1.0], [1])
    torch.save(dict(state_dict=ours, message_hub=dict(log_scalars=dict(loss=history))), source)
    there, back = tmp_path / 'authors.safetensors', tmp_path / 'ours.safetensors'
    done = convert(source, there)
    assert done.returncode == 0, done.stderr
    assert "tensors converted to the authors' names" in done.stdout
    assert (
        'decoder.center_head.layers.0.weight -> transformer.decoder.layers.0.point1' in done.stdout
    )
    assert_equal_to_the_bit(dict(sorted(load_file(there).items())), dict(sorted(reference.items())))
    done = convert(there, back)
    assert done.returncode == 0, done.stderr
    assert 'tensors converted to our names' in done.stdout
    assert_equal_to_the_bit(dict(sorted(load_file(back).items())), dict(sorted(ours.items())))

    refused = convert(source, tmp_path / 'never.pth', '--num-classes', 80)
    assert refused.returncode == 2 and '--num-classes' in refused.stderr
    assert not (tmp_path / 'never.pth').exists()


class Malicious:
    """A pickle that would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


class Scripted(torch.nn.Module):
    def forward(self, x):
        return x + 1


@pytest.fixture
def bad_files(reference, tmp_path):
    """Files that are no checkpoints, with what has to be said of them; and what none may create."""
    trace = tmp_path / 'executed'
    few = dict(list(reference.items())[:50])

    def file(name, content=b''):
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    def saved(name, content, **options):
        torch.save(content, tmp_path / name, **options)
        return tmp_path / name

    whole = saved('whole.pth', dict(model=few))
    legacy = saved('legacy.pth', dict(model=few), _use_new_zipfile_serialization=False)
    save_file(few, tmp_path / 'whole.safetensors')
    safe = (tmp_path / 'whole.safetensors').read_bytes()
    Scripted().eval()
    torch.jit.script(Scripted()).save(str(tmp_path / 'script.pth'))
    np.savez(tmp_path / 'arrays.npz', weight=np.zeros(3))
    payload = Malicious(trace)
    (tmp_path / 'folder.pth').mkdir()
    return trace, {
        file('truncated.pth', whole.read_bytes()[:100_000]): 'truncated',
        file('truncated_legacy.pth', legacy.read_bytes()[:100_000]): 'truncated',
        file('text.pth', b'no checkpoint at all'): 'not a PyTorch checkpoint',
        file('empty.pth'): 'truncated',
        file('pickle.pth', pickle.dumps(dict(model=payload))): 'never executed',
        saved('zip.pth', dict(model=few, args=payload)): 'holds a (io|_io).open: code is never',
        saved('old.pth', payload, _use_new_zipfile_serialization=False): 'never executed',
        tmp_path / 'script.pth': 'code, which is never executed',
        file('disguised.pth', safe): 'not a PyTorch checkpoint',
        file('truncated.safetensors', safe[:100_000]): 'truncated or not a safetensors',
        file('header.safetensors', b'\xff' * 64): 'truncated or not a safetensors',
        file('empty.safetensors'): 'truncated or not a safetensors',
        file('pickle.safetensors', pickle.dumps(payload)): 'truncated or not a safetensors',
        file('zip.safetensors', whole.read_bytes()): 'truncated or not a safetensors',
        saved('list.pth', [torch.zeros(2)]): 'holds a list',
        saved('tensor.pth', torch.zeros(2)): 'holds a Tensor',
        saved('numbers.pth', dict(model=dict(weight=1.0))): 'no named tensors',
        saved('nothing.pth', dict(state_dict={})): 'no named tensors',
        saved('numbered.pth', {0: torch.zeros(2)}): 'no named tensors',
        tmp_path / 'arrays.npz': 'kind ".npz" are neither read nor written',
        saved('whole.bin', dict(model=few)): 'only .pth and .safetensors',
        tmp_path / 'folder.pth': 'is a folder',
        tmp_path / 'nowhere.pth': 'does not exist',
    }


def test_unreadable_files_are_refused_in_one_line(bad_files, tmp_path):
    trace, files = bad_files
    for path, words in files.items():
        with pytest.raises(CheckpointError, match=words) as info:
            checkpoint_files.read_tensors(path)
        assert str(path) in str(info.value)
    refused = convert(tmp_path / 'zip.pth', tmp_path / 'out.pth')
    assert refused.returncode == 2 and len(refused.stderr.splitlines()) == 1
    assert not trace.exists() and not (tmp_path / 'out.pth').exists()
    # The counter-check: what is refused would have been executed.
    with pytest.warns(ResourceWarning):
        torch.load(tmp_path / 'zip.pth', weights_only=False)
    assert trace.exists()


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_writing_is_whole_or_not_at_all(suffix, tmp_path, monkeypatch):
    state_dict = dict(weight=torch.zeros(3))
    path = tmp_path / f'out{suffix}'

    def full(_, partial, **__):
        with open(partial, 'wb') as file:
            file.write(b'half of it')
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(torch, 'save', full)
        patch.setattr('safetensors.torch.save_file', full)
        with pytest.raises(CheckpointError, match=f'out{suffix} cannot be written.*No space left'):
            checkpoint_files.write(state_dict, path)
    assert list(tmp_path.iterdir()) == []

    checkpoint_files.write(state_dict, path)
    before = path.read_bytes()
    with pytest.raises(UserError, match='exists'):
        checkpoint_files.write(dict(weight=torch.ones(3)), path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match='is not a folder'):
        checkpoint_files.write(state_dict, tmp_path / 'nowhere' / path.name)
    with pytest.raises(CheckpointError, match='neither read nor written'):
        checkpoint_files.write(state_dict, tmp_path / 'out.onnx')


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_files_keep_every_bit(suffix, tmp_path):
    whole = torch.randn(4, 6)
    state_dict = dict(
        view=whole[:, ::2],
        shared=whole,
        double=torch.randn(2, dtype=torch.float64),
        half=torch.randn(3).bfloat16(),
        counter=torch.tensor(3),
        odd=torch.tensor([float('inf'), -0.0]),
    )
    expected = copy.deepcopy(state_dict)
    checkpoint_files.write(state_dict, tmp_path / f'out{suffix}')
    read = checkpoint_files.read_tensors(tmp_path / f'out{suffix}')
    assert_equal_to_the_bit(dict(sorted(read.items())), dict(sorted(expected.items())))
    assert torch.signbit(read['odd'][1])


def test_weights_of_several_processes_are_read_without_their_prefix(tmp_path):
    """As DistributedDataParallel names them; a part named so is left alone."""
    weights = {'module.a.weight': torch.zeros(1), 'module.b.bias': torch.ones(1)}
    torch.save(dict(model=weights), tmp_path / 'several.pth')
    assert list(checkpoint_files.read_tensors(tmp_path / 'several.pth')) == ['a.weight', 'b.bias']
    torch.save(dict(model=weights | {'c': torch.zeros(1)}), tmp_path / 'part.pth')
    assert 'module.a.weight' in checkpoint_files.read_tensors(tmp_path / 'part.pth')


def test_what_could_not_be_read_back_is_named():
    content = dict(meta=dict(dataset_meta=dict(palette=np.zeros((2, 3), np.uint8))))
    check_readable(content | dict(state_dict=dict(a=torch.zeros(3)), state=ConfigDict(b=[1])))
    content['meta']['dataset_meta']['kinds'] = ['a', Path('b')]
    with pytest.raises(CheckpointError, match=r'meta\.dataset_meta\.kinds\.1: .* a PosixPath'):
        check_readable(content)
