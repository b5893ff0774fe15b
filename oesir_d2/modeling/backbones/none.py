"""The backbone of a model without a detector: no features, no weights, no work."""

from __future__ import annotations

import torch
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone


class NoBackbone(Backbone):
    """Stands where a model that embeds given or grid regions from its teacher's map needs no detector features."""

    def __init__(self) -> None:
        super().__init__()
        self._out_features: list[str] = []
        self._out_feature_channels: dict[str, int] = {}
        self._out_feature_strides: dict[str, int] = {}

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {}


@BACKBONE_REGISTRY.register()
def build_no_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> NoBackbone:
    return NoBackbone()
