"""The smallest run: one parameter, four epochs of eight iterations."""

import copy
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.model import BaseModel
from mmengine.registry import DATASETS, METRICS, MODELS
from torch.utils.data import Dataset

SGD = dict(type='SGD', lr=1.0, momentum=0.9, weight_decay=1e-4)


@MODELS.register_module()
class Slope(BaseModel):
    """Its loss is random, as with dropout, and depends on the images."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(1))

    def forward(self, *inputs, mode):
        if mode == 'predict':
            return [{}]
        return dict(loss=(self.weight * torch.stack(inputs)).mean() * torch.rand(1))


@DATASETS.register_module()
class Numbers(Dataset):
    """Images of one number; their meta information is of the kind that CocoDataset has."""

    metainfo = dict(classes=('disc', 'square'), palette=[(220, 50, 45), (50, 90, 225)])

    def __init__(self, images: int) -> None:
        self.images = images

    def __len__(self) -> int:
        return self.images

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.full((1,), float(index))


@METRICS.register_module()
class Given(BaseMetric):
    """An evaluation with results that are known beforehand; the last is repeated."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = list(values)

    def process(self, data_batch, data_samples) -> None:
        self.results.append(0)

    def compute_metrics(self, results) -> dict:
        return dict(mAP=self.values.pop(0) if len(self.values) > 1 else self.values[0])


def evaluated(*values: float) -> dict:
    """Settings of a validation with these results."""
    return dict(
        val_dataloader=dict(
            dataset=dict(type='Numbers', images=1), sampler=dict(type='DefaultSampler')
        ),
        val_cfg=dict(),
        val_evaluator=dict(type='Given', values=values),
    )


def config(
    folder: Path, schedulers: list[dict] | dict | None = None, batch_size: int = 2, **changes
) -> Config:
    """The run's config; by default, it saves a checkpoint after each epoch."""
    by_epoch = 'max_iters' not in changes.get('train_cfg', {})
    loader = dict(
        batch_size=batch_size,
        num_workers=0,
        dataset=dict(type='Numbers', images=16),
        sampler=dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler'),
    )
    options = dict(
        model=dict(type='Slope'),
        work_dir=str(folder),
        train_dataloader=loader,
        train_cfg=dict(by_epoch=True, max_epochs=4),
        optim_wrapper=dict(optimizer=SGD),
        param_scheduler=schedulers or [],
        default_hooks=dict(
            checkpoint=dict(type='CheckpointHook', interval=1 if by_epoch else 4, by_epoch=by_epoch)
        ),
        experiment_name=str(folder),
        randomness=dict(seed=0),
        log_level='WARNING',
    )
    return Config(copy.deepcopy(options | changes))
