"""Where the map that embeddings are pooled from comes from.

Shape shorthand: N images, C channels, S stride.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
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

    @property
    def blocks(self) -> tuple[int, ...]:
        """How many of the channels each map brings, of a source that joins several; a whitening tells them apart."""
        return (self.output_shape.channels,)

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
    """The detector's own maps: free, and what the supplement's Figures 1 and 2 compare a classifier with.

    Several maps are joined along their channels; the coarser are enlarged to the stride of the finest.

    Args:
        features: names of the maps among the backbone's.
        input_shape: of the backbone's maps, by name.

    Raises:
        ValueError: no map, or one that the backbone does not have.
    """

    @configurable
    def __init__(self, *, features: Sequence[str], input_shape: dict[str, ShapeSpec]) -> None:
        super().__init__()
        unknown = [name for name in features if name not in input_shape]
        if unknown or not features:
            raise ValueError(
                f"MODEL.OESIR.EMBEDDING.DETECTOR_FEATURES is {list(features)}; "
                f"allowed: one or more of the backbone's maps {sorted(input_shape)}"
            )
        self.features = tuple(features)
        shapes = [input_shape[name] for name in features]
        self._blocks = tuple(shape.channels for shape in shapes)
        self.output_shape = ShapeSpec(
            channels=sum(shape.channels for shape in shapes), stride=min(shape.stride for shape in shapes)
        )

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {"features": cfg.MODEL.OESIR.EMBEDDING.DETECTOR_FEATURES, "input_shape": input_shape}

    @property
    def blocks(self) -> tuple[int, ...]:
        return self._blocks

    def forward(self, images: list[torch.Tensor], features: dict[str, torch.Tensor]) -> torch.Tensor:
        maps = [features[name] for name in self.features]
        size = max(tuple(feature_map.shape[-2:]) for feature_map in maps)
        return maps[0] if len(maps) == 1 else torch.cat([_enlarge(feature_map, size) for feature_map in maps], dim=1)


def _enlarge(feature_map: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Repeat the cells of (N, C, h, w) to (N, C, *size); where a side is no multiple, the nearest cell is taken."""
    count, channels, height, width = feature_map.shape
    if (height, width) == size:
        return feature_map
    rows, columns = size[0] // height, size[1] // width
    if (height * rows, width * columns) != size:
        return F.interpolate(feature_map, size=size, mode="nearest")
    # On a CPU several times faster than to interpolate.
    repeated = feature_map[:, :, :, None, :, None].expand(count, channels, height, rows, width, columns)
    return repeated.reshape(count, channels, *size)


def build_embedding_source(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> EmbeddingSource:
    """Build the source that ``MODEL.OESIR.EMBEDDING.SOURCE`` names."""
    name = cfg.MODEL.OESIR.EMBEDDING.SOURCE
    return get_registered(EMBEDDING_SOURCE_REGISTRY, name, "MODEL.OESIR.EMBEDDING.SOURCE")(cfg, input_shape)
