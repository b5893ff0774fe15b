"""The network: importing this package registers its components with detectron2."""

from oesir_d2.modeling import backbones
from oesir_d2.modeling.embedding_head import POOLER_REGISTRY, EmbeddingHead
from oesir_d2.modeling.embedding_source import EMBEDDING_MAP, EMBEDDING_SOURCE_REGISTRY, build_embedding_source
from oesir_d2.modeling.meta_arch import OESIR
from oesir_d2.modeling.regions import REGION_PROPOSER_REGISTRY, build_region_proposer
from oesir_d2.modeling.roi_heads import ObjectEmbeddingROIHeads, RegionEmbeddingROIHeads
from oesir_d2.modeling.teacher import TEACHER_REGISTRY, build_teacher

__all__ = [
    "EMBEDDING_MAP",
    "EMBEDDING_SOURCE_REGISTRY",
    "OESIR",
    "POOLER_REGISTRY",
    "REGION_PROPOSER_REGISTRY",
    "TEACHER_REGISTRY",
    "EmbeddingHead",
    "ObjectEmbeddingROIHeads",
    "RegionEmbeddingROIHeads",
    "backbones",
    "build_embedding_source",
    "build_region_proposer",
    "build_teacher",
]
