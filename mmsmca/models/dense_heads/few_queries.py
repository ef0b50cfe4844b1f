"""Predictions of a DETR head that has fewer scores than requested detections."""

from torch import Tensor, nn


class FewQueries:
    """Mixin, placed before an MMDetection DETR head, that caps the number of detections.

    MMDetection's heads fail if ``test_cfg.max_per_img`` exceeds the number of scores to choose
    from: queries x classes with a sigmoid, queries with a softmax.
    """

    test_cfg: dict
    loss_cls: nn.Module

    def _predict_by_feat_single(self, cls_score: Tensor, *args, **kwargs):
        configured = self.test_cfg
        available = cls_score.numel() if self.loss_cls.use_sigmoid else len(cls_score)
        wanted = configured.get('max_per_img', len(cls_score))
        try:
            self.test_cfg = dict(configured, max_per_img=min(wanted, available))
            return super()._predict_by_feat_single(cls_score, *args, **kwargs)  # type: ignore[misc]
        finally:
            self.test_cfg = configured
