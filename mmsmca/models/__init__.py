"""SMCA's modules, registered in MMDetection's ``MODELS``."""

from mmsmca.models.dense_heads.smca_head import SMCAHead
from mmsmca.models.detectors.smca_detr import SMCADETR
from mmsmca.models.layers.co_attention import CoAttention
from mmsmca.models.layers.conv_encoder import SMCAConvEncoder
from mmsmca.models.layers.decoder import SMCADecoder, SMCADecoderLayer
from mmsmca.models.layers.deformable_encoder import SMCADeformableEncoder
from mmsmca.models.layers.encoder import SMCAEncoder, SMCAEncoderLayer
from mmsmca.models.layers.spatial_prior import SpatialPrior

__all__ = [
    'CoAttention',
    'SMCAConvEncoder',
    'SMCADETR',
    'SMCADecoder',
    'SMCADecoderLayer',
    'SMCADeformableEncoder',
    'SMCAEncoder',
    'SMCAEncoderLayer',
    'SMCAHead',
    'SpatialPrior',
]
