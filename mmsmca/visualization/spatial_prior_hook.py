"""Training hook that shows how the spatial priors change."""

import torch
from mmcv.transforms import Compose
from mmdet.registry import HOOKS
from mmdet.utils import get_test_pipeline_cfg
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from . import prior_history
from .inspection import check_spatial_prior, inspect_image


@HOOKS.register_module()
class SpatialPriorHook(Hook):
    """Shows on one image how the priors of all queries change over training.

    Before the first iteration, every ``interval`` iterations and after the last, the hook runs the
    detector on the image in evaluation mode and passes the curves and the picture of
    :mod:`mmsmca.visualization.prior_history` to the runner's visualizer: centres, offsets and
    scales or, for SMCA-DINO, boxes and the priors tied to them. Training is not affected.
    Checkpoints contain the history.

    Args:
        image: Image file, loaded by the config's test pipeline.
        interval: Iterations between two measurements. Defaults to 500.

    Raises:
        ConfigError: If the detector has no spatial prior; before the first iteration.
        DataError: If the image cannot be read; before the first iteration.
    """

    def __init__(self, image: str, interval: int = 500) -> None:
        self.image = image
        self.interval = interval
        self.history: dict[str, torch.Tensor] = {}

    def before_train(self, runner: Runner) -> None:
        """Measure the priors before training."""
        self.pipeline = Compose(get_test_pipeline_cfg(runner.cfg))
        if not self.history or self.history['iterations'][-1] != runner.iter:
            self._look(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, **batch) -> None:
        """Measure the priors every ``interval`` iterations and after the last."""
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            self._look(runner, runner.iter + 1)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save the history."""
        checkpoint['spatial_prior_history'] = self.history

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Restore the history if training is resumed."""
        if runner._resume:
            self.history = checkpoint.get('spatial_prior_history', {})

    def _look(self, runner: Runner, iteration: int) -> None:
        if not is_main_process():
            return
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        check_spatial_prior(model)
        modes = {module: module.training for module in model.modules()}
        model.eval()
        inspection = inspect_image(model, self.pipeline, self.image)
        for module, training in modes.items():
            module.training = training
        measured = prior_history.measure(inspection)
        new = dict(measured, iterations=torch.tensor(iteration))
        # If a resumed run measures other curves, its old history cannot be continued.
        past = self.history if self.history.keys() == new.keys() else {}
        self.history = {
            name: torch.cat([*([past[name]] if past else []), value[None]])
            for name, value in new.items()
        }
        picture = prior_history.history_image(self.history, inspection.image)
        runner.visualizer.add_scalars(prior_history.scalars(measured), step=iteration)
        runner.visualizer.add_image('spatial_prior', picture, step=iteration)
