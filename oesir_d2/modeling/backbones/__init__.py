"""Backbones that detectron2 does not have; importing this package registers them."""

from oesir_d2.modeling.backbones.efficientnet_lite import (
    EfficientNetLiteBackbone,
    EfficientNetLiteTrunk,
    build_efficientnet_lite_fpn_backbone,
)
from oesir_d2.modeling.backbones.none import NoBackbone, build_no_backbone

__all__ = [
    "EfficientNetLiteBackbone",
    "EfficientNetLiteTrunk",
    "NoBackbone",
    "build_efficientnet_lite_fpn_backbone",
    "build_no_backbone",
]
