"""Makes an epoch's randomness depend on its number alone, not on what ran before it."""

from functools import partial

import numpy as np
from mmdet.registry import HOOKS
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner, set_random_seed

from mmsmca.errors import ConfigError


def epoch_seed(seed: int, epoch: int, rank: int) -> int:
    """Seed of one epoch in one process.

    Args:
        seed: Seed of the run, at least 0.
        epoch: Number of the epoch, from 0.
        rank: Number of the process, from 0.

    Returns:
        An integer from 0 to 2**31 - 1; neighbouring arguments give unrelated seeds.
    """
    return int(np.random.SeedSequence([seed, epoch, rank]).generate_state(1)[0]) >> 1


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Seeds Python, NumPy and PyTorch before every training epoch, data loading included.

    MMEngine's checkpoints do not store the state of the random generators: a resumed run draws
    dropout and augmentation from the start of the seed's stream again. With this hook and a seed in
    ``randomness``, it draws the same numbers as an uninterrupted run, since everything depends only
    on seed and epoch, as the image order of ``DefaultSampler`` already does. For
    ``EpochBasedTrainLoop`` only: an iteration-based run has one epoch.
    """

    def before_train(self, runner: Runner) -> None:
        """Refuse workers that outlive the epoch.

        Args:
            runner: Runner of the training.

        Raises:
            ConfigError: If the workers of the training data are persistent.
        """
        if runner.train_dataloader.persistent_workers:
            raise ConfigError(
                'EpochSeedHook seeds data loading workers when they start, but '
                'train_dataloader.persistent_workers=True keeps them for all epochs. Set it to '
                'False, or remove EpochSeedHook from custom_hooks.'
            )

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed this process, and the workers that it is about to start.

        Args:
            runner: Runner of the training.
        """
        seed = epoch_seed(runner.seed, runner.epoch, get_rank())
        set_random_seed(seed)
        # MMEngine's `worker_init_fn` with this seed instead of the run's.
        loader = runner.train_dataloader
        loader.worker_init_fn = partial(loader.worker_init_fn, seed=seed)
