"""Classification and box regression relative to the queries' centres."""

import torch
from mmdet.models.dense_heads import ConditionalDETRHead
from mmdet.registry import MODELS
from mmdet.utils import InstanceList
from torch import Tensor

from mmsmca.models.layers.precision import at_least_float32

from .few_queries import FewQueries
from .layer_losses import LayerLosses


@MODELS.register_module()
class SMCAHead(LayerLosses, FewQueries, ConditionalDETRHead):
    """SMCA's head: predicts boxes as offsets, in logit space, from the queries' centres.

    Configuration, losses and predictions are those of MMDetection's ``ConditionalDETRHead``. Its
    references are centres in [0, 1]; here they are logits, which need no inverse sigmoid.
    """

    def forward(self, hidden_states: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Predict class logits and boxes of every decoder layer.

        Args:
            hidden_states: Outputs of the decoder layers, (layers, B, Q, C).
            references: Logits of the queries' centres (x, y), (layers, B, Q, 2). Prediction passes
                the last of the hidden states, and all references.

        Returns:
            Class logits, (layers, B, Q, classes), and boxes (cx, cy, w, h) in [0, 1] of the image
            content, (layers, B, Q, 4).
        """
        # Matching costs and losses use these values. In half precision log(1 - score) soon becomes
        # log(0), and a box is off by half a pixel in an image of 128 pixels.
        with torch.autocast(hidden_states.device.type, enabled=False):
            hidden_states = hidden_states.type_as(self.fc_cls.weight)
            boxes = at_least_float32(self.regress(hidden_states))
            centers = boxes[..., :2] + references[-len(hidden_states) :]
            boxes = torch.cat((centers, boxes[..., 2:]), dim=-1)
            return at_least_float32(self.fc_cls(hidden_states)), boxes.sigmoid()

    def regress(self, hidden_states: Tensor) -> Tensor:
        """Predict box logits relative to the queries' centres.

        Args:
            hidden_states: Outputs of decoder layers, (..., C).

        Returns:
            Logits (cx, cy, w, h), (..., 4); the first two are added to those of the centre.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            hidden_states = hidden_states.type_as(self.fc_reg.weight)
            return self.fc_reg(self.activate(self.reg_ffn(hidden_states)))

    def loss_by_feat(
        self,
        all_layers_cls_scores: Tensor,
        all_layers_bbox_preds: Tensor,
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
    ) -> dict[str, Tensor]:
        """Compute the losses of all decoder layers, see :meth:`.LayerLosses.matched_losses`."""
        return self.matched_losses(
            all_layers_cls_scores, all_layers_bbox_preds, batch_gt_instances, batch_img_metas
        )
