"""Conversion of the authors' checkpoints, refusals included."""

import argparse
import pickle
import subprocess
import sys

import golden
import pytest
import torch
from mmdet.datasets import CocoDataset
from utils import ROOT, build_detector

from mmsmca import checkpoints


@pytest.fixture(scope='module')
def reference():
    case = golden.load('single_scale_independent')
    return {name: torch.from_numpy(x).float() for name, x in case.state_dict().items()}


def convert(*args):
    return subprocess.run(
        [sys.executable, str(ROOT / 'tools' / 'convert_checkpoint.py'), *map(str, args)],
        capture_output=True,
        text=True,
    )


def test_every_tensor_is_placed(reference):
    converted = checkpoints.convert_reference(reference)
    assert len(converted) == len(reference)
    places = sorted(tensor.data_ptr() for tensor in converted.values())
    assert places == sorted(tensor.data_ptr() for tensor in reference.values())


def test_describes_the_architecture(reference):
    assert checkpoints.describe_reference(reference) == dict(
        architecture='single_scale',
        encoder_layers=2,
        decoder_layers=3,
        num_queries=30,
        num_classes=92,
        embed_dims=256,
        feedforward_channels=256,
        num_heads=8,
        scale='independent',
    )


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


def test_unknown_tensor_is_named(reference):
    with pytest.raises(checkpoints.CheckpointError, match='no place for: segmentation.mask.weight'):
        checkpoints.convert_reference({**reference, 'segmentation.mask.weight': torch.zeros(1)})


@pytest.mark.parametrize(
    'prefix',
    [
        'transformer.decoder.layers.1.norm4.',
        'transformer.encoder.layers.0.linear2.',
        'bbox_embed.',
        'transformer.decoder.layers.0.point1.',
    ],
)
def test_missing_tensors_are_named(reference, prefix):
    rest = {name: tensor for name, tensor in reference.items() if not name.startswith(prefix)}
    with pytest.raises(checkpoints.CheckpointError, match=f'missing under: {prefix}'):
        checkpoints.convert_reference(rest)


def test_other_models_are_refused(reference):
    detr = {name: tensor for name, tensor in reference.items() if 'norm4' not in name}
    with pytest.raises(checkpoints.CheckpointError, match='no SMCA of the authors'):
        checkpoints.convert_reference(detr)


@pytest.mark.parametrize('num_classes', [20, 91])
def test_other_numbers_of_classes_are_refused(reference, num_classes):
    with pytest.raises(checkpoints.CheckpointError, match=f'num_classes={num_classes}'):
        checkpoints.convert_reference(reference, num_classes)


def test_command(reference, tmp_path):
    source, destination = tmp_path / 'authors.pth', tmp_path / 'ours.pth'
    # The authors' training script stores its arguments too.
    torch.save(dict(model=reference, args=argparse.Namespace(lr=1e-4)), source)
    done = convert(source, destination, '--num-classes', 80)
    assert done.returncode == 0, done.stderr
    assert f'all {len(reference)} tensors' in done.stdout
    assert 'scale independent' in done.stdout
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


class Malicious:
    """A pickle that would write a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), 'w'))


def test_unreadable_files_are_refused_by_name(reference, tmp_path):
    whole = tmp_path / 'whole.pth'
    torch.save(dict(model=reference), whole)
    truncated = tmp_path / 'truncated.pth'
    truncated.write_bytes(whole.read_bytes()[:100_000])
    text = tmp_path / 'text.pth'
    text.write_text('no checkpoint at all')
    empty = tmp_path / 'empty.pth'
    empty.touch()
    ours = tmp_path / 'ours.pth'
    torch.save(dict(state_dict=reference), ours)
    trace, malicious = tmp_path / 'executed', tmp_path / 'malicious.pth'
    malicious.write_bytes(pickle.dumps(dict(model=Malicious(trace))))
    for source, words in {
        truncated: 'truncated',
        text: 'another format',
        empty: 'truncated',
        malicious: 'never executed',
        ours: 'no tensors under "model"',
        tmp_path / 'nowhere.pth': 'no such file',
    }.items():
        with pytest.raises(checkpoints.CheckpointError, match=words) as info:
            checkpoints.load_reference(source)
        assert str(source) in str(info.value)
    assert not trace.exists()
    refused = convert(truncated, tmp_path / 'out.pth')
    assert refused.returncode == 2
    assert 'truncated' in refused.stderr and 'Traceback' not in refused.stderr
    assert not (tmp_path / 'out.pth').exists()
