"""Classification and box regression relative to the queries' centres."""

import torch
from mmdet.models.dense_heads import ConditionalDETRHead
from mmdet.registry import MODELS
from torch import Tensor

from mmsmca.models.layers.precision import widen

from .few_queries import FewQueries
from .finite_matching import FiniteMatching


@MODELS.register_module()
class SMCAHead(FiniteMatching, FewQueries, ConditionalDETRHead):
    """Head of SMCA: boxes are predicted as offsets from the queries' centres, in logits.

    Configuration, losses and predictions are those of MMDetection's ``ConditionalDETRHead``, whose
    references are centres in [0, 1]; ours are their logits, which need no inverse sigmoid.
    """

    def forward(self, hidden_states: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
        """Predict class logits and boxes of every decoder layer.

        Args:
            hidden_states: Outputs of the decoder layers, (layers, B, Q, C).
            references: Logits of the queries' centres (x, y), (B, Q, 2), or every layer's own,
                (layers, B, Q, 2).

        Returns:
            Class logits, (layers, B, Q, classes), and boxes (cx, cy, w, h) in [0, 1] of the image
            content, (layers, B, Q, 4).
        """
        # Costs of the matching and losses are made of these: in half precision the logarithm of one
        # minus a score is soon that of zero, and a box is half a pixel off in an image of 128.
        with torch.autocast(hidden_states.device.type, enabled=False):
            hidden_states = hidden_states.type_as(self.fc_cls.weight)
            boxes = widen(self.regress(hidden_states))
            if references.dim() == 4:  # For predictions the last layer comes alone.
                references = references[-len(hidden_states) :]
            boxes = torch.cat((boxes[..., :2] + references, boxes[..., 2:]), dim=-1)
            return widen(self.fc_cls(hidden_states)), boxes.sigmoid()

    def regress(self, hidden_states: Tensor) -> Tensor:
        """Predict logits of boxes relative to the queries' centres.

        Args:
            hidden_states: Outputs of decoder layers, (..., C).

        Returns:
            Logits (cx, cy, w, h), the first two to be added to the centre's, (..., 4).
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            hidden_states = hidden_states.type_as(self.fc_reg.weight)
            return self.fc_reg(self.activate(self.reg_ffn(hidden_states)))
