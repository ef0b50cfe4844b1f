"""An encoder that learns to give what DINO's encoder gives, from images alone."""

from pathlib import Path

import torch
from mmdet.models.detectors import DINO
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from rich.progress import Progress, TextColumn
from torch import Tensor
from torch.utils.data import Dataset

from mmsmca.models.detectors.smca_dino import SMCADINO

# Largest learning rate, iterations between checkpoints, and processes that load images.
LEARNING_RATE, SAVE_INTERVAL, NUM_WORKERS = 1e-3, 200, 2


class EncoderImitation(BaseModel):
    """Mean squared error between the encoded cells of two detectors, relative to their variance.

    Only the encoder of ``smca_dino`` is trained; everything before it is DINO's.

    Args:
        dino: Detector whose encoder is imitated.
        smca_dino: Detector whose encoder imitates.
    """

    def __init__(self, dino: DINO, smca_dino: SMCADINO) -> None:
        super().__init__(data_preprocessor=dino.data_preprocessor)
        self.encoder = smca_dino.encoder
        # Not modules of this one: they are neither trained nor saved.
        self.detectors = [dino, smca_dino]

    def to(self, *args, **kwargs) -> 'EncoderImitation':
        """Move the detectors too."""
        for detector in self.detectors:
            detector.to(*args, **kwargs)
        return super().to(*args, **kwargs)

    def forward(
        self, inputs: Tensor, data_samples: list, mode: str = 'tensor'
    ) -> dict[str, Tensor]:
        """Compute the loss; ``mode`` is MMEngine's, and ``loss`` the only one."""
        dino, smca_dino = self.detectors
        with torch.no_grad():
            maps = dino.extract_feat(inputs)
            encoder_inputs, _ = dino.pre_transformer(maps, data_samples)
            target = dino.forward_encoder(**encoder_inputs)['memory']
            own_inputs, _ = smca_dino.pre_transformer(maps, data_samples)
        memory = smca_dino.forward_encoder(**own_inputs)['memory']
        content = slice(None) if memory.padding is None else ~memory.padding
        target, encoded = target[content].float(), memory.tokens[content].float()
        return dict(loss=(encoded - target).square().mean() / target.var())


class ProgressHook(Hook):
    """A progress bar with the loss."""

    def before_train(self, runner: Runner) -> None:
        """Show the bar."""
        self.progress = Progress(
            *Progress.get_default_columns(), TextColumn('loss {task.fields[loss]}')
        )
        self.progress.start()
        self.task = self.progress.add_task(
            'imitation', total=runner.max_iters, completed=runner.iter, loss='-'
        )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs=None
    ) -> None:
        """Advance the bar."""
        loss = f'{float(outputs["loss"]):.3f}'
        self.progress.update(self.task, completed=runner.iter + 1, loss=loss)

    def after_train(self, runner: Runner) -> None:
        """Leave the bar as it is."""
        self.progress.stop()


def imitate(
    dino: DINO,
    smca_dino: SMCADINO,
    dataset: Dataset,
    batch_size: int,
    iterations: int,
    amp: bool,
    out: Path,
) -> None:
    """Train the encoder of ``smca_dino`` to imitate that of ``dino``.

    A run that was interrupted continues from its checkpoint, in a folder beside ``out``.

    Args:
        dino: Detector whose encoder is imitated, in evaluation mode.
        smca_dino: Detector whose encoder is trained.
        dataset: Images.
        batch_size: Images per iteration.
        iterations: Number of iterations.
        amp: Whether to train in mixed precision.
        out: Checkpoint of the conversion.
    """
    warm_up = max(1, iterations // 10)
    runner = Runner(
        model=EncoderImitation(dino, smca_dino),
        work_dir=str(out.with_suffix('')) + '_imitation',
        train_dataloader=dict(
            dataset=dataset,
            batch_size=batch_size,
            num_workers=NUM_WORKERS,
            persistent_workers=NUM_WORKERS > 0,
            sampler=dict(type='InfiniteSampler', shuffle=True),
            collate_fn=dict(type='pseudo_collate'),
        ),
        train_cfg=dict(
            type='IterBasedTrainLoop', max_iters=iterations, val_interval=iterations + 1
        ),
        optim_wrapper=dict(
            type='AmpOptimWrapper' if amp else 'OptimWrapper',
            optimizer=dict(type='AdamW', lr=LEARNING_RATE, weight_decay=1e-4),
            clip_grad=dict(max_norm=1.0),
        ),
        param_scheduler=[
            dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=warm_up),
            dict(
                type='CosineAnnealingLR', by_epoch=False, begin=warm_up, T_max=iterations - warm_up
            ),
        ],
        default_hooks=dict(
            checkpoint=dict(
                type='AtomicCheckpointHook',
                by_epoch=False,
                interval=SAVE_INTERVAL,
                max_keep_ckpts=1,
            ),
            logger=None,
        ),
        custom_hooks=[ProgressHook()],
        log_level='WARNING',
        randomness=dict(seed=0),
        resume=True,
        default_scope='mmdet',
    )
    runner.train()
    smca_dino.eval()
