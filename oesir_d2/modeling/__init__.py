"""The network: importing this package registers its components with detectron2."""

from oesir_d2.modeling import backbones
from oesir_d2.modeling.contrastive import OESIRContrastive
from oesir_d2.modeling.contrastive_losses import CONTRASTIVE_LOSS_REGISTRY, build_contrastive_loss
from oesir_d2.modeling.crop_embedding import CropOESIR
from oesir_d2.modeling.distillation import OESIRDistillation
from oesir_d2.modeling.embedding_head import POOLER_REGISTRY, EmbeddingHead
from oesir_d2.modeling.embedding_source import EMBEDDING_MAP, EMBEDDING_SOURCE_REGISTRY, build_embedding_source
from oesir_d2.modeling.landmark_classifier import MARGIN_SOFTMAX_REGISTRY, LandmarkClassifier
from oesir_d2.modeling.layer_taps import DetectorTaps, LayerTaps, TeacherTaps
from oesir_d2.modeling.losses import DISTILLATION_LOSS_REGISTRY, build_distillation_losses
from oesir_d2.modeling.meta_arch import OESIR
from oesir_d2.modeling.regions import REGION_PROPOSER_REGISTRY, build_region_proposer
from oesir_d2.modeling.resnet50_teacher import ResNet50Teacher
from oesir_d2.modeling.roi_heads import ObjectEmbeddingROIHeads, RegionEmbeddingROIHeads
from oesir_d2.modeling.student_source import StudentSource
from oesir_d2.modeling.students import STUDENT_REGISTRY, build_student
from oesir_d2.modeling.teacher import TEACHER_REGISTRY, EfficientNetLiteTeacher, build_teacher

__all__ = [
    "CONTRASTIVE_LOSS_REGISTRY",
    "DISTILLATION_LOSS_REGISTRY",
    "EMBEDDING_MAP",
    "EMBEDDING_SOURCE_REGISTRY",
    "MARGIN_SOFTMAX_REGISTRY",
    "OESIR",
    "OESIRContrastive",
    "OESIRDistillation",
    "POOLER_REGISTRY",
    "REGION_PROPOSER_REGISTRY",
    "STUDENT_REGISTRY",
    "TEACHER_REGISTRY",
    "CropOESIR",
    "DetectorTaps",
    "EfficientNetLiteTeacher",
    "EmbeddingHead",
    "LandmarkClassifier",
    "LayerTaps",
    "ObjectEmbeddingROIHeads",
    "RegionEmbeddingROIHeads",
    "ResNet50Teacher",
    "StudentSource",
    "TeacherTaps",
    "backbones",
    "build_contrastive_loss",
    "build_distillation_losses",
    "build_embedding_source",
    "build_region_proposer",
    "build_student",
    "build_teacher",
]
