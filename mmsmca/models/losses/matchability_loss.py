"""Matchability-aware loss (DEIM, arXiv:2412.04234, equation 3)."""

import torch.nn.functional as F
from mmdet.models.losses import QualityFocalLoss
from mmdet.models.losses.utils import weight_reduce_loss
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class MatchabilityLoss(QualityFocalLoss):
    r"""Classification loss with targets that depend on the IoU q, and full weight for positives.

    .. math:: L = \begin{cases} -q^\gamma \log p - (1 - q^\gamma) \log (1 - p) & \text{matched} \\
        -p^\gamma \log (1 - p) & \text{else} \end{cases}

    As it is a ``QualityFocalLoss``, MMDetection's DETR heads pass it labels and IoUs.

    Args:
        gamma: Exponent of the IoU and of the weight of negatives. Defaults to 1.5.
        loss_weight: Factor of the loss. Defaults to 1.
        use_sigmoid: Kept for the heads, which read it; must be True.
    """

    def __init__(
        self, gamma: float = 1.5, loss_weight: float = 1.0, use_sigmoid: bool = True
    ) -> None:
        super().__init__(use_sigmoid=use_sigmoid, loss_weight=loss_weight)
        self.gamma = gamma

    def forward(
        self,
        pred: Tensor,
        target: tuple[Tensor, Tensor],
        weight: Tensor | None = None,
        avg_factor: float | None = None,
        reduction_override: str | None = None,
    ) -> Tensor:
        """Compute the loss.

        Args:
            pred: Class logits, (N, classes).
            target: Labels, (N,), where the number of classes means no object; and IoUs between
                predicted and matched boxes, (N,).
            weight: Weights of the N predictions, (N,). Defaults to None: 1.
            avg_factor: Divisor of the sum. Defaults to None: N.
            reduction_override: ``none``, ``mean`` or ``sum`` instead of ``mean``. Defaults to None.

        Returns:
            The loss, a scalar unless the reduction is ``none``.
        """
        labels, quality = target
        positive = F.one_hot(labels, pred.size(1) + 1)[:, :-1].to(pred.dtype)
        soft = positive * quality.to(pred.dtype)[:, None].pow(self.gamma)
        # The weight gets no gradient, as in the authors' code.
        balance = positive + (1 - positive) * pred.detach().sigmoid().pow(self.gamma)
        loss = F.binary_cross_entropy_with_logits(pred, soft, balance, reduction='none').sum(1)
        reduction = reduction_override or 'mean'
        return self.loss_weight * weight_reduce_loss(loss, weight, reduction, avg_factor)
