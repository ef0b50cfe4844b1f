"""DINO's head in full precision, with or without denoising."""

from collections.abc import Sequence

import torch
from mmdet.models.dense_heads import DINOHead
from mmdet.models.layers import inverse_sigmoid
from mmdet.registry import MODELS
from mmdet.utils import InstanceList
from torch import Tensor

from mmsmca.models.layers.precision import at_least_float32

from .few_queries import FewQueries
from .layer_losses import LayerLosses, Targets


@MODELS.register_module()
class SMCADINOHead(LayerLosses, FewQueries, DINOHead):
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
                logits.append(at_least_float32(classify(x)))
                boxes.append((at_least_float32(regress(x)) + inverse_sigmoid(reference)).sigmoid())
            return torch.stack(logits), torch.stack(boxes)

    def loss_by_feat(
        self,
        all_layers_cls_scores: Tensor,
        all_layers_bbox_preds: Tensor,
        enc_cls_scores: Tensor | None,
        enc_bbox_preds: Tensor | None,
        batch_gt_instances: InstanceList,
        batch_img_metas: list[dict],
        dn_meta: dict | None,
    ) -> dict[str, Tensor]:
        """Compute the losses of matching queries, proposals and denoising queries.

        Args:
            all_layers_cls_scores: Class logits, (layers, B, Q, classes), denoising queries first.
            all_layers_bbox_preds: Boxes (cx, cy, w, h) in [0, 1], (layers, B, Q, 4).
            enc_cls_scores: Class logits of the proposals, (B, N, classes); None in one stage.
            enc_bbox_preds: Boxes of the proposals, (B, N, 4); None in one stage.
            batch_gt_instances: Objects of every image, with ``labels`` and ``bboxes`` (x, y, x, y)
                in pixels.
            batch_img_metas: Metadata of every image, with ``img_shape``.
            dn_meta: Meta information of the denoising query generator; None without denoising.

        Returns:
            Losses by name, as :meth:`.LayerLosses.matched_losses`: ``enc_loss_cls`` and so on of
            the proposals, ``dn_loss_cls``, ``d0.dn_loss_cls`` and so on of the denoising queries.

        Raises:
            DivergedError: If a prediction is not finite.
        """
        scores, boxes, dn_scores, dn_boxes = self.split_outputs(
            all_layers_cls_scores, all_layers_bbox_preds, dn_meta
        )
        images = batch_gt_instances, batch_img_metas
        losses = self.matched_losses(scores, boxes, *images)
        if enc_cls_scores is not None and enc_bbox_preds is not None:
            losses |= self.matched_losses(
                enc_cls_scores[None], enc_bbox_preds[None], *images, 'enc_'
            )
        if dn_scores is not None and dn_boxes is not None and dn_meta is not None:
            targets = self.denoising_targets(len(scores), *images, dn_meta)
            losses |= self.named_losses(dn_scores, dn_boxes, targets, batch_img_metas, 'dn_')
        return losses

    def denoising_targets(
        self, layers: int, objects: InstanceList, metas: Sequence[dict], dn_meta: dict
    ) -> Targets:
        """Targets of the denoising queries, the same for every layer.

        Args:
            layers: Number of decoder layers.
            objects: Objects of every image.
            metas: Metadata of every image.
            dn_meta: Meta information of the denoising query generator.
        """
        images = [
            self._get_dn_targets_single(of_image, meta, dn_meta)
            for of_image, meta in zip(objects, metas, strict=True)
        ]
        labels = torch.stack([image[0] for image in images]).expand(layers, -1, -1)
        queries = labels.size(-1)
        matched = torch.cat([i * queries + image[4] for i, image in enumerate(images)])
        boxes = torch.cat([image[2][image[4]] for image in images])
        first = torch.arange(layers, device=matched.device) * labels[0].numel()
        return Targets(
            labels,
            (first[:, None] + matched).flatten(),
            boxes.repeat(layers, 1),
            sum(len(image[5]) for image in images),
        )

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
