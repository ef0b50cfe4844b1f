"""DINO with SMCA's spatial prior."""

import torch
import torch.nn.functional as F
from mmdet.models.detectors import DINO, DeformableDETR
from mmdet.models.layers import CdnQueryGenerator
from mmdet.registry import MODELS
from mmdet.structures import SampleList
from torch import Tensor, nn

from mmsmca.models.layers.attention import cell_coordinates
from mmsmca.models.layers.memory import Memory, padding_maps
from mmsmca.models.layers.precision import at_least_float32

from .levels import LevelDetector

# Side of query selection's initial boxes at stride 8, as a fraction of the image's side.
ANCHOR = 0.05


class NoDenoising:
    """Stand-in for MMDetection's ``CdnQueryGenerator`` to train without denoising queries."""

    def __call__(self, batch_data_samples: SampleList) -> tuple[Tensor, Tensor, None, None]:
        """Return empty queries and boxes, no mask and no meta information."""
        nothing = batch_data_samples[0].gt_instances.labels.new_empty(0, dtype=torch.float32)
        return nothing, nothing, None, None


@MODELS.register_module()
class SMCADINO(LevelDetector, DINO):
    """DINO whose decoder attends around its boxes under SMCA's prior, without custom operators.

    MMDetection's :class:`DINO` (arXiv:2203.03605) with its query selection, denoising and head; the
    encoder and the decoder are built from the registry (``type`` defaults to ``SMCAHybridEncoder``
    and ``SMCADINODecoder``). Every map of the neck is a feature level. Building a detector makes
    the CPU flush denormal numbers to zero (:mod:`mmsmca.denormals`).

    Args:
        as_two_stage: Whether queries start from the encoder's best proposals; otherwise from
            learned boxes. Defaults to True.
        dn_cfg: Config of the denoising, see ``CdnQueryGenerator``. Defaults to None: no denoising,
            which requires the head ``SMCADINOHead``.
        args: Positional arguments of MMDetection's ``DeformableDETR``.
        kwargs: Its keyword arguments, and ``strides``, as in :class:`.LevelDetector`.
    """

    BASE = DeformableDETR  # DINO's constructor requires two stages and denoising.
    ENCODER = 'SMCAHybridEncoder'
    DECODER = 'SMCADINODecoder'
    EMBEDS_ONE_LEVEL = True

    def __init__(
        self, *args, as_two_stage: bool = True, dn_cfg: dict | None = None, **kwargs
    ) -> None:
        super().__init__(*args, as_two_stage=as_two_stage, **kwargs)
        self.dn_query_generator = (
            NoDenoising()
            if dn_cfg is None
            else CdnQueryGenerator(
                num_classes=self.bbox_head.num_classes,
                embed_dims=self.embed_dims,
                num_matching_queries=self.num_queries,
                **dn_cfg,
            )
        )

    def _init_layers(self) -> None:
        super()._init_layers()
        if self.as_two_stage:
            self.memory_trans_fc = nn.Linear(self.embed_dims, self.embed_dims)
            self.memory_trans_norm = nn.LayerNorm(self.embed_dims)
        else:
            self.query_boxes = nn.Embedding(self.num_queries, 4)

    def init_weights(self) -> None:
        """Initialise like DINO, except modules that have their own initialisation."""
        super().init_weights()
        for layer in self.decoder.layers:
            layer.cross_attn.init_weights()
        nn.init.xavier_uniform_(self.query_embedding.weight)
        nn.init.normal_(self.level_embed)
        if self.as_two_stage:
            nn.init.xavier_uniform_(self.memory_trans_fc.weight)
        else:
            # Uniformly distributed centres, sides a tenth of the image's.
            with torch.no_grad():
                self.query_boxes.weight[:, :2].uniform_()
                self.query_boxes.weight[:, 2:] = 0.1
                self.query_boxes.weight.logit_(eps=1e-3)

    def pre_decoder(
        self, memory: Memory, batch_data_samples: SampleList | None = None
    ) -> tuple[dict, dict]:
        """Start the queries from the best cells or from learned boxes, after denoising queries.

        Args:
            memory: The encoded levels.
            batch_data_samples: Samples, in training with annotations, for the denoising.

        Returns:
            Arguments of :meth:`forward_decoder`, and of the head.
        """
        batch_size, device = memory.tokens.size(0), memory.tokens.device
        query, logits, proposed = self.query_embedding.weight.expand(batch_size, -1, -1), None, None
        # Half precision would select other queries and round their scores, which enter the loss.
        with torch.autocast(device.type, enabled=False):
            if self.as_two_stage:
                logits, boxes = self.propose(memory)
                proposed, boxes = boxes.sigmoid(), boxes.detach()
            else:
                boxes = self.query_boxes.weight.expand(batch_size, -1, -1)
            dn_mask, head_inputs = None, {}
            if self.training:
                labels, noisy_boxes, dn_mask, dn_meta = self.dn_query_generator(batch_data_samples)
                query = torch.cat((labels, query), dim=1)
                boxes = torch.cat((noisy_boxes, boxes), dim=1)
                head_inputs = dict(
                    enc_outputs_class=logits, enc_outputs_coord=proposed, dn_meta=dn_meta
                )
            references = at_least_float32(boxes).sigmoid()
        decoder_inputs = dict(query=query, reference_points=references, dn_mask=dn_mask)
        return dict(decoder_inputs, memory=memory), head_inputs

    def propose(self, memory: Memory) -> tuple[Tensor, Tensor]:
        """Select the cells that the queries start from, and predict classes and boxes there.

        The boxes are DINO's, except that their sides depend on a level's stride, not on its index.
        In DINO, tokens that cannot propose a box (padding and the very border of the image) compete
        with the score of an all-zero token. Here they become copies of the token with the lowest
        score, so that padding does not change the selection. If there are fewer tokens than
        queries, further copies make up the difference.

        Args:
            memory: The encoded levels.

        Returns:
            Class logits, (B, Q, classes), and logits of boxes (cx, cy, w, h), (B, Q, 4).
        """
        like = at_least_float32(self.level_embed)
        padding = padding_maps(memory.padding, memory.shapes)
        anchors = torch.cat(
            [
                _boxes(shape, beyond, ANCHOR * stride / 8, like)
                for shape, beyond, stride in zip(
                    memory.shapes, padding, self.decoder.strides, strict=True
                )
            ],
            dim=1,
        ).expand(memory.tokens.size(0), -1, -1)
        cannot = ((anchors <= 0.01) | (anchors >= 0.99)).any(-1)
        if memory.padding is not None:
            cannot = cannot | memory.padding
        tokens = self.memory_trans_fc(memory.tokens.type_as(self.level_embed))
        tokens = self.memory_trans_norm(tokens)
        classify, regress = (
            branches[self.decoder.num_layers]
            for branches in (self.bbox_head.cls_branches, self.bbox_head.reg_branches)
        )
        logits = classify(tokens)
        scores = logits.detach().amax(-1)
        lowest = scores.masked_fill(cannot, torch.inf).argmin(-1, keepdim=True)
        # A mask for the copies, not an empty tensor of them: runtimes reject one at a fixed size.
        missing = (0, max(0, self.num_queries - scores.size(1)))
        copies = F.pad(cannot, missing, value=True)
        scores = torch.where(copies, scores.gather(1, lowest), F.pad(scores, missing))
        best = self.best(scores)
        cells = torch.where(copies.gather(1, best), lowest, best).unsqueeze(-1)
        logits, tokens, anchors = (
            x.gather(1, cells.expand(-1, -1, x.size(-1))) for x in (logits, tokens, anchors)
        )
        return logits, regress(tokens) + anchors.logit()

    def best(self, scores: Tensor) -> Tensor:
        """Indices of the cells with the highest scores, (B, Q), from (B, N)."""
        return scores.topk(self.num_queries, dim=1).indices

    def forward_decoder(self, dn_mask: Tensor | None = None, **decoder_inputs) -> dict:
        """Decode; other arguments as in :meth:`.SMCADINODecoder.forward`.

        Args:
            dn_mask: True where a query must not see another, (Q, Q), or None.
            decoder_inputs: Arguments of the decoder.

        Returns:
            Arguments of the head: ``hidden_states``, (layers, B, Q, C), and ``references``, a list
            of boxes (cx, cy, w, h) in [0, 1], initial and after every layer, (B, Q, 4) each.
        """
        hidden_states, references = self.decoder(
            self_attn_mask=dn_mask, reg_branches=self.bbox_head.reg_branches, **decoder_inputs
        )
        if self.training and isinstance(self.dn_query_generator, CdnQueryGenerator):
            # A batch without objects has no denoising queries. Their embedding needs a gradient
            # nevertheless: distributed training waits for the gradient of every parameter.
            hidden_states = hidden_states + self.dn_query_generator.label_embedding.weight.sum() * 0
        return dict(hidden_states=hidden_states, references=list(references))


def _boxes(shape: tuple[int, int], padding: Tensor | None, side: float, like: Tensor) -> Tensor:
    """Boxes (cx, cy, w, h) around a level's cells, in [0, 1] of the content; (B or 1, N, 4)."""
    centers = cell_coordinates(shape, like) + 0.5
    content = centers[-1:] + 0.5
    if padding is not None:
        content = torch.stack([(~padding[:, 0]).any(axis).sum(-1) for axis in (1, 2)], dim=-1)
    centers = centers / content.unsqueeze(1).clamp(min=1)
    return torch.cat((centers, torch.full_like(centers, side)), dim=-1)
