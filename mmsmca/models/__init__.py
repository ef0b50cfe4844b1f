"""SMCA's modules, registered in MMDetection's ``MODELS``."""

from .co_attention import CoAttention
from .conv_encoder import SMCAConvEncoder
from .decoder import SMCADecoder, SMCADecoderLayer
from .deformable_encoder import SMCADeformableEncoder
from .detector import SMCADETR
from .encoder import SMCAEncoder, SMCAEncoderLayer
from .head import SMCAHead
from .spatial_prior import SpatialPrior

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
