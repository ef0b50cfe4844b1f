"""DINO's head, in full precision and also without denoising."""

from mmdet.models.dense_heads import DINOHead
from mmdet.registry import MODELS
from torch import Tensor
import torch


@MODELS.register_module()
class SMCADINOHead(DINOHead):
    def forward(self, hidden_states: Tensor, references: list[Tensor]) -> tuple[Tensor, Tensor]:
        with torch.autocast(hidden_states.device.type, enabled=False):
            return super().forward(hidden_states.float(), references)

    @staticmethod
    def split_outputs(all_layers_cls_scores, all_layers_bbox_preds, dn_meta):
        if dn_meta is None:
            return all_layers_cls_scores, all_layers_bbox_preds, None, None
        return DINOHead.split_outputs(all_layers_cls_scores, all_layers_bbox_preds, dn_meta)
