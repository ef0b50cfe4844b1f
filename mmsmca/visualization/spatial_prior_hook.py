"""Training hook that shows how the spatial priors change."""

from mmdet.registry import HOOKS
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from .figures import summary_figure
from .inspection import inspect_image
from .panels import figure_image


@HOOKS.register_module()
class SpatialPriorHook(Hook):
    """Shows on one image where the queries look during training.

    Before the first iteration, every ``interval`` iterations and after the last, the hook runs the
    detector on the image in evaluation mode. It passes the summary of the two best queries in the
    last decoder layer (``spatial_prior``) to the runner's visualizer, and for every layer the
    medians over all queries, heads and levels of the Gaussians' offsets and widths
    (``spatial_prior/layer_0/offset`` and ``width``): in cells and as the paper's scales or, for
    priors tied to boxes, both in box sizes. Training is not affected.

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

    def before_train(self, runner: Runner) -> None:
        """Show the priors before training."""
        self._show(runner, runner.iter)

    def after_train_iter(self, runner: Runner, batch_idx: int, **batch) -> None:
        """Show the priors every ``interval`` iterations and after the last."""
        if self.every_n_train_iters(runner, self.interval) or self.is_last_train_iter(runner):
            self._show(runner, runner.iter + 1)

    def _show(self, runner: Runner, iteration: int) -> None:
        if not is_main_process():
            return
        modes = {module: module.training for module in runner.model.modules()}
        runner.model.eval()
        classes = runner.train_dataloader.dataset.metainfo.get('classes', ())
        inspection = inspect_image(runner.model, runner.cfg, self.image, classes)
        for module, training in modes.items():
            module.training = training
        scalars = {}
        for number in range(len(inspection.layers)):
            prior, name = inspection.gaussians(number), f'spatial_prior/layer_{number}'
            scalars[f'{name}/offset'] = prior.offsets.norm(dim=-1).median().item()
            scalars[f'{name}/width'] = prior.widths.abs().median().item()
        runner.visualizer.add_scalars(scalars, step=iteration)
        figure = summary_figure(inspection, inspection.best_queries(2), layer=-1)
        runner.visualizer.add_image('spatial_prior', figure_image(figure), step=iteration)
