"""SMCA as an MMDetection detector."""

from mmdet.models.detectors import DETR
from mmdet.registry import MODELS

from mmsmca.models.layers.memory import Memory

from .levels import LevelDetector


@MODELS.register_module()
class SMCADETR(LevelDetector, DETR):
    """Fast Convergence of DETR with Spatially Modulated Co-Attention, arXiv:2101.07448.

    MMDetection's :class:`DETR` with the encoder and the decoder built from the registry (``type``
    defaults to ``SMCAEncoder`` and ``SMCADecoder``). Every map of the neck is a feature level;
    ``strides`` lists their strides, in pixels. Building a detector makes the CPU flush denormal
    numbers to zero (:mod:`mmsmca.denormals`). Arguments are those of :class:`.LevelDetector`.
    """

    BASE = DETR
    ENCODER = 'SMCAEncoder'
    DECODER = 'SMCADecoder'

    def pre_decoder(self, memory: Memory) -> tuple[dict, dict]:
        """Add the queries to the encoded levels.

        Returns:
            Arguments of :meth:`forward_decoder`, and none for the head.
        """
        decoder_inputs, head_inputs = super().pre_decoder(memory.tokens)
        return dict(decoder_inputs, memory=memory), head_inputs

    def forward_decoder(self, **decoder_inputs) -> dict:
        """Decode; arguments as in :meth:`.SMCADecoder.forward`.

        Returns:
            Arguments of the head: ``hidden_states``, (layers, B, Q, C), and ``references``, the
            logits of the centres, (layers, B, Q, 2).
        """
        hidden_states, references = self.decoder(**decoder_inputs, regress=self.bbox_head.regress)
        return dict(hidden_states=hidden_states, references=references)
