"""Data and detectors of all tests of the pictures."""

import pytest
import torch
from utils import build_detector, load_config

from mmsmca.datasets.shapes import Shapes

CONFIGS = {
    'smca': 'small/smca_r18w16_1xb8-11e_shapes128.py',
    'multi': 'small/smca-multi-scale_r18w16_1xb4-3ki_shapes192.py',
    'dino': 'small/smca-dino_r18w16_1xb4-3ki_shapes192.py',
    'detr': 'small/detr_r18w16_1xb4-3ki_shapes192.py',
}


@pytest.fixture(scope='session')
def workplace(tmp_path_factory):
    """Generated data, and config and untrained checkpoint of every detector."""
    folder = tmp_path_factory.mktemp('visualization')
    Shapes(num_train=4, num_val=4, size=64, max_objects=2, seed=0).write(folder / 'shapes')
    for name, config in CONFIGS.items():
        cfg = load_config(config)
        cfg.merge_from_dict(
            {
                'test_dataloader.dataset.data_root': f'{folder}/shapes/',
                'test_evaluator.ann_file': f'{folder}/shapes/annotations/instances_val.json',
            }
        )
        cfg.dump(folder / f'{name}.py')
        torch.manual_seed(0)
        meta = dict(dataset_meta=dict(classes=cfg.test_dataloader.dataset.metainfo.classes))
        weights = build_detector(config).state_dict()
        torch.save(dict(state_dict=weights, meta=meta), folder / f'{name}.pth')
    return folder
