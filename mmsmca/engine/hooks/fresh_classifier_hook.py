"""Fine-tuning on other classes: load everything but the classifier."""

from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.runner import Runner

from mmsmca.checkpoints.classes import CLASSIFIER, other_classes


@HOOKS.register_module()
class FreshClassifierHook(Hook):
    """Leaves out the classifier of a ``load_from`` checkpoint that has other classes.

    By itself, MMEngine leaves it out only if the number of classes differs, and otherwise loads the
    rows of other classes. ``tools/train.py`` adds the hook to a run with ``load_from``.
    """

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Remove the classifier from the checkpoint if its classes differ, and log this.

        Args:
            runner: Runner of the training; nothing is removed if it resumes.
            checkpoint: The checkpoint, changed in place.
        """
        if runner._resume:
            return
        classes = runner.train_dataloader.dataset.metainfo.get('classes')
        head = runner.cfg.model.get('bbox_head', {})
        named = {'train_dataloader.dataset': classes} if classes else {}
        if difference := other_classes(checkpoint, head, named):
            state = checkpoint.get('state_dict', checkpoint)
            for name in list(filter(CLASSIFIER.search, state)):
                del state[name]
            runner.logger.info(f'The classifier starts fresh: load_from {difference}.')
