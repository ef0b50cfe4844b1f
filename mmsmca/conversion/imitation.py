"""An encoder that learns to give what DINO's encoder gives, from images alone."""

import logging
from pathlib import Path

import torch
from mmdet.models.detectors import DINO
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from rich.progress import Progress, TextColumn
from torch import Tensor
from torch.utils.data import Dataset

from mmsmca.engine.cpu import support_mixed_precision
from mmsmca.engine.quiet import quiet
from mmsmca.errors import UserError, one_line
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
    """A progress bar with the loss.

    Args:
        progress: The bar, shown.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress

    def before_train(self, runner: Runner) -> None:
        """Begin where the run does."""
        self.task = self.progress.add_task(
            'imitation', total=runner.max_iters, completed=runner.iter, loss='-'
        )

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None, outputs=None
    ) -> None:
        """Advance the bar."""
        loss = f'{outputs["loss"].item():.3f}'
        self.progress.update(self.task, completed=runner.iter + 1, loss=loss)


def imitate(
    dino: DINO,
    smca_dino: SMCADINO,
    dataset: Dataset,
    batch_size: int,
    iterations: int,
    amp: bool,
    work_dir: Path,
) -> None:
    """Train the encoder of ``smca_dino`` to imitate that of ``dino``.

    A run that was interrupted continues from its last checkpoint in ``work_dir``.

    Args:
        dino: Detector whose encoder is imitated, in evaluation mode and on the device to run on.
        smca_dino: Detector whose encoder is trained, likewise.
        dataset: Images.
        batch_size: Images per iteration.
        iterations: Number of iterations.
        amp: Whether to train in mixed precision.
        work_dir: Folder for checkpoints.

    Raises:
        UserError: If the folder cannot be written.
    """
    support_mixed_precision()
    progress = Progress(*Progress.get_default_columns(), TextColumn('loss {task.fields[loss]}'))
    warm_up = iterations // 10
    linear = dict(type='LinearLR', start_factor=0.01, by_epoch=False, end=warm_up)
    cosine = dict(type='CosineAnnealingLR', by_epoch=False, begin=warm_up)
    try:
        with quiet(logging.WARNING), progress:
            runner = Runner(
                model=EncoderImitation(dino, smca_dino),
                work_dir=str(work_dir),
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
                param_scheduler=[linear, cosine] if warm_up else [cosine],
                default_hooks=dict(
                    checkpoint=dict(
                        type='AtomicCheckpointHook',
                        by_epoch=False,
                        interval=SAVE_INTERVAL,
                        max_keep_ckpts=1,
                    ),
                    logger=None,
                ),
                custom_hooks=[ProgressHook(progress)],
                log_level='WARNING',
                randomness=dict(seed=0),
                # MMEngine would print that there is nothing to resume.
                resume=(work_dir / 'last_checkpoint').is_file(),
                default_scope='mmdet',
            )
            runner.train()
    except OSError as error:
        raise UserError(
            f'{work_dir} cannot be written ({one_line(error)}). Repeat the command to continue.'
        ) from error
    smca_dino.eval()
