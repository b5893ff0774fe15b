"""Where the map that embeddings are pooled from comes from.

Shape shorthand: N images, C channels, S stride.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

from oesir_d2.modeling.registry import get_registered
from oesir_d2.modeling.teacher import Teacher, build_teacher

EMBEDDING_MAP = "embedding_map"
"""Key under which the embedding map joins the dict of features that ROI heads receive."""

EMBEDDING_SOURCE_REGISTRY = Registry("EMBEDDING_SOURCE")
EMBEDDING_SOURCE_REGISTRY.__doc__ = """
Sources of the embedding map. The registered object is called with ``obj(cfg, input_shape)``, where input_shape is the
backbone's ``output_shape()``, and returns an :class:`EmbeddingSource`.
"""


class EmbeddingSource(nn.Module):
    """Turns photos, or the detector's features of them, into one map.

    A subclass sets ``output_shape`` (channels and stride).
    """

    output_shape: ShapeSpec

    def forward(self, images: list[torch.Tensor], features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Compute the map of a batch.

        Args:
            images: each (3, H_i, W_i), 0 to 255, in cfg.INPUT.FORMAT's channel order.
            features: the detector backbone's maps of the same batch; empty for a model without one.

        Returns:
            (N, C, H / S, W / S), the images' padding at the right and the bottom included.
        """
        raise NotImplementedError


@EMBEDDING_SOURCE_REGISTRY.register()
class TeacherSource(EmbeddingSource):
    """The teacher's own map: a second network beside the detector, the bound that students are measured against."""

    @configurable
    def __init__(self, *, teacher: Teacher) -> None:
        super().__init__()
        self.teacher = teacher
        self.output_shape = teacher.output_shape

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {"teacher": build_teacher(cfg)}

    def forward(self, images: list[torch.Tensor], features: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.teacher(images)


@EMBEDDING_SOURCE_REGISTRY.register()
class DetectorSource(EmbeddingSource):
    """One of the detector's own maps: free, and what the supplement's Figures 1 and 2 compare a classifier with.

    Args:
        feature: name of the map among the backbone's.
        output_shape: its channels and stride.
    """

    @configurable
    def __init__(self, *, feature: str, output_shape: ShapeSpec) -> None:
        super().__init__()
        self.feature = feature
        self.output_shape = output_shape

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        feature = cfg.MODEL.OESIR.EMBEDDING.DETECTOR_FEATURE
        if feature not in input_shape:
            raise ValueError(
                f"MODEL.OESIR.EMBEDDING.DETECTOR_FEATURE {feature!r} is no map of the backbone; "
                f"allowed: {sorted(input_shape)}"
            )
        return {"feature": feature, "output_shape": input_shape[feature]}

    def forward(self, images: list[torch.Tensor], features: dict[str, torch.Tensor]) -> torch.Tensor:
        return features[self.feature]


def build_embedding_source(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> EmbeddingSource:
    """Build the source that ``MODEL.OESIR.EMBEDDING.SOURCE`` names."""
    name = cfg.MODEL.OESIR.EMBEDDING.SOURCE
    return get_registered(EMBEDDING_SOURCE_REGISTRY, name, "MODEL.OESIR.EMBEDDING.SOURCE")(cfg, input_shape)
