"""SMCA's modules, registered in MMDetection's ``MODELS``."""

from mmsmca.models.backbones.efficientnet_lite import EfficientNetLite
from mmsmca.models.dense_heads.smca_dino_head import SMCADINOHead
from mmsmca.models.dense_heads.smca_head import SMCAHead
from mmsmca.models.detectors.smca_detr import SMCADETR
from mmsmca.models.detectors.smca_dino import SMCADINO
from mmsmca.models.layers.box_prior import BoxPrior
from mmsmca.models.layers.co_attention import CoAttention
from mmsmca.models.layers.conv_encoder import SMCAConvEncoder
from mmsmca.models.layers.decoder import SMCADecoder, SMCADecoderLayer
from mmsmca.models.layers.deformable_encoder import SMCADeformableEncoder
from mmsmca.models.layers.dino_decoder import SMCADINODecoder, SMCADINODecoderLayer
from mmsmca.models.layers.encoder import SMCAEncoder, SMCAEncoderLayer
from mmsmca.models.layers.gaussian_encoder import SMCAGaussianEncoder
from mmsmca.models.layers.hybrid_encoder import SMCAHybridEncoder
from mmsmca.models.layers.joint_co_attention import JointCoAttention
from mmsmca.models.layers.other_priors import NoPrior, StaticPrior
from mmsmca.models.layers.plain_co_attention import PlainCoAttention
from mmsmca.models.layers.spatial_prior import SpatialPrior
from mmsmca.models.losses.matchability_loss import MatchabilityLoss

__all__ = [
    'BoxPrior',
    'CoAttention',
    'EfficientNetLite',
    'JointCoAttention',
    'MatchabilityLoss',
    'NoPrior',
    'PlainCoAttention',
    'SMCAConvEncoder',
    'SMCADETR',
    'SMCADINO',
    'SMCADINODecoder',
    'SMCADINODecoderLayer',
    'SMCADINOHead',
    'SMCADecoder',
    'SMCADecoderLayer',
    'SMCADeformableEncoder',
    'SMCAEncoder',
    'SMCAEncoderLayer',
    'SMCAGaussianEncoder',
    'SMCAHead',
    'SMCAHybridEncoder',
    'SpatialPrior',
    'StaticPrior',
]
