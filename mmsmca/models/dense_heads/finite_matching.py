"""A clear error for training that has diverged."""

from mmengine.logging import MessageHub
from torch import Tensor

from mmsmca.errors import DivergedError


class FiniteMatching:
    """Mixin, placed before an MMDetection DETR head, that reports where training diverged.

    Without it, SciPy's matcher fails with "matrix contains invalid numeric entries".
    """

    def _get_targets_single(self, cls_score: Tensor, bbox_pred: Tensor, *args, **kwargs):
        for name, x in (('score', cls_score), ('box', bbox_pred)):
            if not x.isfinite().all():
                value = 'NaN' if x.isnan().any() else 'infinite'
                raise DivergedError(f'a predicted {name} is {value}{_where()}: {REMEDY}')
        return super()._get_targets_single(cls_score, bbox_pred, *args, **kwargs)  # type: ignore[misc]


REMEDY = 'lower optim_wrapper.optimizer.lr, warm up longer, or set optim_wrapper.clip_grad'


def _where() -> str:
    """Step and learning rate of the current training run, as text."""
    hub = MessageHub.get_current_instance()
    step, rate = hub.runtime_info.get('iter'), hub.log_scalars.get('train/lr')
    if step is None or rate is None:
        return ''
    return f' in step {step + 1}, at a learning rate of {rate.current():.3g}'
