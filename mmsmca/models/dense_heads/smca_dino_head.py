"""DINO's head in full precision, with or without denoising."""

import torch
from mmdet.models.dense_heads import DINOHead
from mmdet.models.layers import inverse_sigmoid
from mmdet.registry import MODELS
from torch import Tensor

from mmsmca.models.layers.precision import widen

from .few_queries import FewQueries
from .finite_matching import FiniteMatching


@MODELS.register_module()
class SMCADINOHead(FiniteMatching, FewQueries, DINOHead):
    """MMDetection's ``DINOHead``, with the same config, losses, predictions and state dict."""

    def forward(self, hidden_states: Tensor, references: list[Tensor]) -> tuple[Tensor, Tensor]:
        """Predict class logits and boxes of every decoder layer.

        Args:
            hidden_states: Outputs of the decoder layers, (layers, B, Q, C).
            references: Boxes (cx, cy, w, h) in [0, 1] that each layer's boxes are relative to,
                (B, Q, 4) per layer; extra entries are ignored.

        Returns:
            Class logits, (layers, B, Q, classes), and boxes (cx, cy, w, h) in [0, 1] of the image
            content, (layers, B, Q, 4).
        """
        # As in SMCAHead: half precision is too coarse for matching costs and losses.
        with torch.autocast(hidden_states.device.type, enabled=False):
            hidden_states = hidden_states.type_as(self.cls_branches[0].weight)
            logits, boxes = [], []
            for x, reference, classify, regress in zip(
                hidden_states, references, self.cls_branches, self.reg_branches, strict=False
            ):
                logits.append(widen(classify(x)))
                boxes.append((widen(regress(x)) + inverse_sigmoid(reference)).sigmoid())
            return torch.stack(logits), torch.stack(boxes)

    @staticmethod
    def split_outputs(
        all_layers_cls_scores: Tensor, all_layers_bbox_preds: Tensor, dn_meta: dict | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
        """Split predictions into those of matching and of denoising queries.

        Args:
            all_layers_cls_scores: Class logits, (layers, B, Q, classes).
            all_layers_bbox_preds: Boxes, (layers, B, Q, 4).
            dn_meta: Meta information of the denoising query generator; None without denoising.

        Returns:
            Logits and boxes of the matching queries, then of the denoising queries or None.
        """
        if dn_meta is None:
            return all_layers_cls_scores, all_layers_bbox_preds, None, None
        return DINOHead.split_outputs(all_layers_cls_scores, all_layers_bbox_preds, dn_meta)
