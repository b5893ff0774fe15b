"""Region proposers: which boxes of an image get an embedding.

Shape shorthand: G grid boxes, R regions of an image.
"""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.structures import Boxes, Instances
from detectron2.utils.registry import Registry
from torch import nn

from oesir_d2.layers import rmac_grid
from oesir_d2.modeling.registry import get_registered
from oesir_d2.structures import NO_CLASS

REGION_PROPOSER_REGISTRY = Registry("REGION_PROPOSER")
REGION_PROPOSER_REGISTRY.__doc__ = """
Region proposers. The registered object is called with ``obj(cfg)`` and returns a :class:`RegionProposer`.
"""


class RegionProposer(nn.Module):
    """Chooses the regions of a batch of images.

    ``needs_detections`` and ``needs_proposals`` say what must have run before; the model runs no more than that.
    ``takes_given_proposals``: the proposals are those of the input, even in a model that has an RPN.
    """

    needs_detections = False
    needs_proposals = False
    takes_given_proposals = False

    def forward(
        self,
        image_sizes: list[tuple[int, int]],
        detections: list[Instances] | None,
        proposals: list[Instances] | None,
    ) -> list[Instances]:
        """Choose the regions.

        Args:
            image_sizes: (height, width) of each image as the network sees it, without padding.
            detections: with ``pred_boxes``, ``scores``, ``pred_classes``, if ``needs_detections``.
            proposals: with ``proposal_boxes`` and ``objectness_logits``, if ``needs_proposals``.

        Returns:
            One Instances an image, with ``pred_boxes`` (XYXY, pixels of the network's input), ``scores`` in [0, 1] and
            ``pred_classes`` (``NO_CLASS`` where nothing named the region). Those that a score ranks come best first.
        """
        raise NotImplementedError


@REGION_PROPOSER_REGISTRY.register()
class DetectorRegions(RegionProposer):
    """The detector's boxes over a score threshold.

    Args:
        max_regions: keep at most this many, best score first; > 0.
        score_threshold: keep boxes of at least this score, in [0, 1].
        classes: keep these classes only; empty keeps all.

    Raises:
        ValueError: an argument out of its range.
    """

    needs_detections = True
    needs_proposals = True

    @configurable
    def __init__(self, *, max_regions: int, score_threshold: float = 0.0, classes: tuple[int, ...] = ()) -> None:
        super().__init__()
        if not 0 <= score_threshold <= 1:
            raise ValueError(f"MODEL.OESIR.REGIONS.SCORE_THRESH is {score_threshold}; allowed: 0 to 1")
        self.max_regions = _check_max_regions(max_regions)
        self.score_threshold = score_threshold
        self.classes = tuple(classes)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.MODEL.OESIR.REGIONS
        unknown = [class_id for class_id in options.CLASSES if class_id not in range(cfg.MODEL.ROI_HEADS.NUM_CLASSES)]
        if unknown:
            raise ValueError(
                f"MODEL.OESIR.REGIONS.CLASSES has {unknown[0]!r}; allowed: the detector's classes, 0 to "
                f"{cfg.MODEL.ROI_HEADS.NUM_CLASSES - 1}"
            )
        return {
            "max_regions": options.MAX_REGIONS,
            "score_threshold": options.SCORE_THRESH,
            "classes": tuple(options.CLASSES),
        }

    def forward(
        self,
        image_sizes: list[tuple[int, int]],
        detections: list[Instances] | None,
        proposals: list[Instances] | None,
    ) -> list[Instances]:
        assert detections is not None, "DetectorRegions needs detections"
        return [self._select(detections_per_image) for detections_per_image in detections]

    def _select(self, detections: Instances) -> Instances:
        keep = detections.scores >= self.score_threshold
        if self.classes:
            allowed = torch.tensor(self.classes, device=detections.pred_classes.device)
            keep &= torch.isin(detections.pred_classes, allowed)
        kept = detections[keep]
        best_first = kept.scores.argsort(descending=True, stable=True)[: self.max_regions]
        return kept[best_first]


@REGION_PROPOSER_REGISTRY.register()
class RPNRegions(RegionProposer):
    """The RPN's class-agnostic proposals, scored by the sigmoid of their objectness.

    Args:
        max_regions: keep at most this many, best score first; > 0.

    Raises:
        ValueError: an argument out of its range.
    """

    needs_proposals = True

    @configurable
    def __init__(self, *, max_regions: int) -> None:
        super().__init__()
        self.max_regions = _check_max_regions(max_regions)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {"max_regions": cfg.MODEL.OESIR.REGIONS.MAX_REGIONS}

    def forward(
        self,
        image_sizes: list[tuple[int, int]],
        detections: list[Instances] | None,
        proposals: list[Instances] | None,
    ) -> list[Instances]:
        assert proposals is not None, "RPNRegions needs proposals"
        return [self._select(proposals_per_image) for proposals_per_image in proposals]

    def _select(self, proposals: Instances) -> Instances:
        best_first = proposals.objectness_logits.argsort(descending=True, stable=True)[: self.max_regions]
        scores = proposals.objectness_logits[best_first].sigmoid()
        return make_regions(proposals.image_size, proposals.proposal_boxes[best_first].tensor, scores)


@REGION_PROPOSER_REGISTRY.register()
class GivenRegions(RegionProposer):
    """All boxes that the input brings as ``proposals``, in their order.

    They have ``proposal_boxes`` in pixels of the network's input and may have ``objectness_logits``, whose sigmoid is
    the score; without them it is 1.
    """

    needs_proposals = True
    takes_given_proposals = True

    @configurable
    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        return {}

    def forward(
        self,
        image_sizes: list[tuple[int, int]],
        detections: list[Instances] | None,
        proposals: list[Instances] | None,
    ) -> list[Instances]:
        assert proposals is not None, "GivenRegions needs proposals"
        return [self._take(proposals_per_image) for proposals_per_image in proposals]

    def _take(self, given: Instances) -> Instances:
        scores = given.objectness_logits.sigmoid() if given.has("objectness_logits") else None
        # A copy: detectron2 scales boxes to the original image in place, and these are the caller's.
        return make_regions(given.image_size, given.proposal_boxes.tensor.clone(), scores)


@REGION_PROPOSER_REGISTRY.register()
class GridRegions(RegionProposer):
    """The R-MAC grid (Tolias et al., ICLR 2016): squares of several sizes that cover the image, no detector needed.

    Args:
        levels: the levels, each > 0; level l has squares of side 2 min(H, W) / (l + 1).
        overlap: overlap of neighbouring squares along the longer side, in [0, 1).
        max_regions: at most this many, in the order of the levels, > 0; the last level may be cut short.

    Raises:
        ValueError: an argument out of its range.
    """

    @configurable
    def __init__(self, *, levels: tuple[int, ...], overlap: float, max_regions: int) -> None:
        super().__init__()
        self.levels = tuple(levels)
        self.overlap = overlap
        self.max_regions = _check_max_regions(max_regions)
        rmac_grid(1, 1, self.levels, self.overlap)  # refuses wrong levels now, not at the first image

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.MODEL.OESIR.REGIONS
        return {
            "levels": tuple(options.GRID_LEVELS),
            "overlap": options.GRID_OVERLAP,
            "max_regions": options.MAX_REGIONS,
        }

    def forward(
        self,
        image_sizes: list[tuple[int, int]],
        detections: list[Instances] | None,
        proposals: list[Instances] | None,
    ) -> list[Instances]:
        return [
            make_regions(size, rmac_grid(size[0], size[1], self.levels, self.overlap)[: self.max_regions])
            for size in image_sizes
        ]


@REGION_PROPOSER_REGISTRY.register()
class NoRegions(RegionProposer):
    """No region at all: an image is its whole self, one global vector.

    Raises:
        ValueError: from a config without the whole image, by which an image would have no vector.
    """

    @configurable
    def __init__(self) -> None:
        super().__init__()

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        if not cfg.MODEL.OESIR.REGIONS.WHOLE_IMAGE:
            raise ValueError("MODEL.OESIR.REGIONS.PROPOSER 'NoRegions' needs MODEL.OESIR.REGIONS.WHOLE_IMAGE True")
        return {}

    def forward(
        self,
        image_sizes: list[tuple[int, int]],
        detections: list[Instances] | None,
        proposals: list[Instances] | None,
    ) -> list[Instances]:
        return [make_regions(size, torch.zeros(0, 4)) for size in image_sizes]


def make_regions(image_size: tuple[int, int], boxes: torch.Tensor, scores: torch.Tensor | None = None) -> Instances:
    """Regions without a class.

    Args:
        image_size: (height, width) of the image as the network sees it.
        boxes: (R, 4) XYXY, pixels of the network's input.
        scores: (R,) in [0, 1]; 1 if not given.
    """
    count = len(boxes)
    return Instances(
        image_size,
        pred_boxes=Boxes(boxes),
        scores=boxes.new_ones(count) if scores is None else scores,
        pred_classes=torch.full((count,), NO_CLASS, dtype=torch.int64, device=boxes.device),
    )


def _check_max_regions(max_regions: int) -> int:
    if max_regions < 1:
        raise ValueError(f"MODEL.OESIR.REGIONS.MAX_REGIONS is {max_regions}; allowed: at least 1")
    return max_regions


def build_region_proposer(cfg: CfgNode) -> RegionProposer:
    """Build the proposer that ``MODEL.OESIR.REGIONS.PROPOSER`` names."""
    name = cfg.MODEL.OESIR.REGIONS.PROPOSER
    return get_registered(REGION_PROPOSER_REGISTRY, name, "MODEL.OESIR.REGIONS.PROPOSER")(cfg)
