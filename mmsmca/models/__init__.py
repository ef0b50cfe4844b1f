"""SMCA's modules, registered in MMDetection's ``MODELS``."""

from mmsmca.models.backbones.efficientnet_lite import EfficientNetLite
from mmsmca.models.backbones.transformers_backbone import TransformersBackbone
from mmsmca.models.dense_heads.smca_dino_head import SMCADINOHead
from mmsmca.models.dense_heads.smca_head import SMCAHead
from mmsmca.models.detectors.smca_detr import SMCADETR
from mmsmca.models.detectors.smca_dino import SMCADINO
from mmsmca.models.layers.attention import AllLevelsCoAttention, CoAttention, PlainCoAttention
from mmsmca.models.layers.box_prior import BoxPrior
from mmsmca.models.layers.conv_encoder import SMCAConvEncoder
from mmsmca.models.layers.decoder import SMCADecoder, SMCADecoderLayer
from mmsmca.models.layers.deformable_encoder import SMCADeformableEncoder
from mmsmca.models.layers.dino_decoder import SMCADINODecoder, SMCADINODecoderLayer
from mmsmca.models.layers.encoder import SMCAEncoder, SMCAEncoderLayer
from mmsmca.models.layers.hybrid_encoder import SMCAHybridEncoder
from mmsmca.models.layers.spatial_prior import SpatialPrior
from mmsmca.models.layers.static_prior import StaticPrior
from mmsmca.models.necks.simple_feature_pyramid import SimpleFeaturePyramid

__all__ = [
    'AllLevelsCoAttention',
    'BoxPrior',
    'CoAttention',
    'EfficientNetLite',
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
    'SMCAHead',
    'SMCAHybridEncoder',
    'SimpleFeaturePyramid',
    'SpatialPrior',
    'StaticPrior',
    'TransformersBackbone',
]
