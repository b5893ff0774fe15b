"""ROI heads that embed: detectron2's StandardROIHeads plus the embedding head, and the same without a detector.

Shape shorthand: N images, D dimensions of an embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import ROI_HEADS_REGISTRY, StandardROIHeads
from detectron2.structures import ImageList, Instances
from torch import nn

from oesir_d2.modeling.embedding_head import EmbeddingHead
from oesir_d2.modeling.embedding_source import EMBEDDING_MAP
from oesir_d2.modeling.regions import RegionProposer, build_region_proposer


class _EmbedsRegions:
    """What both ROI heads share: the region proposer and the embedding head."""

    region_proposer: RegionProposer
    embedding_head: EmbeddingHead

    def embed_given_boxes(self, features: dict[str, torch.Tensor], instances: list[Instances]) -> list[Instances]:
        """Give instances, with ``pred_boxes`` in pixels of the network's input, their ``embeddings`` (R, D)."""
        boxes = [instances_per_image.pred_boxes.tensor for instances_per_image in instances]
        sizes = [instances_per_image.image_size for instances_per_image in instances]
        vectors = self.embedding_head.embed_regions(features[EMBEDDING_MAP], boxes, sizes)
        for instances_per_image, vectors_per_image in zip(
            instances, vectors.split([len(b) for b in boxes]), strict=True
        ):
            instances_per_image.embeddings = vectors_per_image
        return instances

    def _propose_regions(
        self, images: ImageList, detections: list[Instances] | None, proposals: list[Instances] | None
    ) -> list[Instances]:
        regions = self.region_proposer(images.image_sizes, detections, proposals)
        return [regions_per_image.to(images.tensor.device) for regions_per_image in regions]


@ROI_HEADS_REGISTRY.register()
class ObjectEmbeddingROIHeads(_EmbedsRegions, StandardROIHeads):
    """StandardROIHeads whose predictions carry embeddings.

    In eval mode the region proposer chooses which boxes are predicted: the detector's, the RPN's, a grid or given
    ones; the box head runs only if the proposer asks for detections. Training is StandardROIHeads' own.

    Args:
        region_proposer: chooses the regions in eval mode.
        embedding_head: embeds them from ``features[EMBEDDING_MAP]``.
        **kwargs: of StandardROIHeads.
    """

    @configurable
    def __init__(self, *, region_proposer: RegionProposer, embedding_head: EmbeddingHead, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.region_proposer = region_proposer
        self.embedding_head = embedding_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return super().from_config(cfg, input_shape) | {
            "region_proposer": build_region_proposer(cfg),
            "embedding_head": EmbeddingHead(cfg, input_shape[EMBEDDING_MAP]),
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances] | None,
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """See :meth:`StandardROIHeads.forward`; predictions have ``embeddings`` (R, D), float32, L2-normalised."""
        if self.training:
            return super().forward(images, features, proposals, targets)
        return self.forward_with_given_boxes(features, self.choose_regions(images, features, proposals)), {}

    def choose_regions(
        self, images: ImageList, features: dict[str, torch.Tensor], proposals: list[Instances] | None
    ) -> list[Instances]:
        """The regions of each image, not embedded yet; ``features`` need no embedding map for it."""
        detections = self._forward_box(features, proposals) if self.region_proposer.needs_detections else None
        return self._propose_regions(images, detections, proposals)

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Everything but boxes for given boxes: StandardROIHeads' masks and keypoints, and the embeddings."""
        return self.embed_given_boxes(features, super().forward_with_given_boxes(features, instances))


@ROI_HEADS_REGISTRY.register()
class RegionEmbeddingROIHeads(_EmbedsRegions, nn.Module):
    """The embedding head without a detector, for proposers that need no detections.

    Args:
        region_proposer: chooses the regions.
        embedding_head: embeds them from ``features[EMBEDDING_MAP]``.

    Raises:
        ValueError: if the proposer needs a detector.
    """

    @configurable
    def __init__(self, *, region_proposer: RegionProposer, embedding_head: EmbeddingHead) -> None:
        super().__init__()
        if region_proposer.needs_detections:
            raise ValueError(
                f"MODEL.OESIR.REGIONS.PROPOSER {type(region_proposer).__name__!r} needs a detector; "
                "RegionEmbeddingROIHeads has none, set MODEL.ROI_HEADS.NAME to 'ObjectEmbeddingROIHeads'"
            )
        self.region_proposer = region_proposer
        self.embedding_head = embedding_head

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {
            "region_proposer": build_region_proposer(cfg),
            "embedding_head": EmbeddingHead(cfg, input_shape[EMBEDDING_MAP]),
        }

    def forward(
        self,
        images: ImageList,
        features: dict[str, torch.Tensor],
        proposals: list[Instances] | None,
        targets: list[Instances] | None = None,
    ) -> tuple[list[Instances], dict[str, torch.Tensor]]:
        """Regions with ``pred_boxes, scores, pred_classes, embeddings``, and no losses."""
        assert not self.training, "a model without a detector has nothing to train here; call eval() first"
        return self.forward_with_given_boxes(features, self.choose_regions(images, features, proposals)), {}

    def choose_regions(
        self, images: ImageList, features: dict[str, torch.Tensor], proposals: list[Instances] | None
    ) -> list[Instances]:
        """The regions of each image, not embedded yet."""
        return self._propose_regions(images, None, proposals)

    def forward_with_given_boxes(
        self, features: dict[str, torch.Tensor], instances: list[Instances]
    ) -> list[Instances]:
        """Embeddings for given boxes."""
        return self.embed_given_boxes(features, instances)
