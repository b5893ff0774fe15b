"""Distillation losses: how far the student's map is from the teacher's.

The supplement does not state the loss; these are our choice.

Shape shorthand: N images, C channels, h x w cells of the student's map, h' x w' of the teacher's, R regions an image.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.utils.registry import Registry
from torch import nn

from oesir_d2.layers import AreaRegionPooler, PCAWhitening, RegionPooler, count_valid_cells, load_whitening
from oesir_d2.modeling.embedding_head import build_region_pooler
from oesir_d2.modeling.registry import get_registered
from oesir_d2.modeling.weights import resolve_weights

DISTILLATION_LOSS_REGISTRY = Registry("DISTILLATION_LOSS")
DISTILLATION_LOSS_REGISTRY.__doc__ = """
Distillation losses. The registered object is called with ``obj(cfg, student_shape, teacher_shape)``, the channels of
the two maps and their strides in pixels of the student's photo, and returns a :class:`DistillationLoss`.
"""


class DistillationLoss(nn.Module):
    """Compares two maps of the same photos. A subclass sets ``name``, under which the loss is logged."""

    name: str

    def forward(
        self, student_map: torch.Tensor, teacher_map: torch.Tensor, image_sizes: list[tuple[int, int]]
    ) -> torch.Tensor:
        """Compute the loss of a batch.

        Args:
            student_map: (N, C, h, w), any floating dtype; the gradient flows into it.
            teacher_map: (N, C, h', w'), without a gradient; its stride may be another than the student's.
            image_sizes: (height, width) of each photo as the student sees it, without padding.

        Returns:
            A scalar >= 0, float32, 0 where the maps agree; padding has no part in it.
        """
        raise NotImplementedError


@DISTILLATION_LOSS_REGISTRY.register()
class FeatureMapL2Loss(DistillationLoss):
    """The mean squared difference over all cells that hold some of a photo, and over all channels.

    Where the strides differ, the cells of the finer map are averaged over those of the coarser.

    Args:
        student_stride, teacher_stride: in pixels of the student's photo; one is a multiple of the other.

    Raises:
        ValueError: if neither stride is a multiple of the other.
    """

    name = "loss_distill_l2"

    @configurable
    def __init__(self, *, student_stride: float, teacher_stride: float) -> None:
        super().__init__()
        self.stride = max(student_stride, teacher_stride)
        if self.stride % min(student_stride, teacher_stride):
            raise ValueError(
                f"FeatureMapL2Loss cannot compare maps of stride {student_stride:g} (student) and {teacher_stride:g} "
                "(teacher, after MODEL.OESIR.DISTILLATION.TEACHER_SCALE); allowed: one a multiple of the other"
            )
        self._student_window = round(self.stride / student_stride)
        self._teacher_window = round(self.stride / teacher_stride)

    @classmethod
    def from_config(cls, cfg: CfgNode, student_shape: ShapeSpec, teacher_shape: ShapeSpec) -> dict[str, Any]:
        return {"student_stride": student_shape.stride, "teacher_stride": teacher_shape.stride}

    def forward(
        self, student_map: torch.Tensor, teacher_map: torch.Tensor, image_sizes: list[tuple[int, int]]
    ) -> torch.Tensor:
        student = F.avg_pool2d(student_map.float(), self._student_window)
        teacher = F.avg_pool2d(teacher_map.float(), self._teacher_window)
        # The two networks may pad a batch to different sizes, always at the right and the bottom.
        rows, columns = (min(sides) for sides in zip(student.shape[2:], teacher.shape[2:], strict=True))
        squared = (student[:, :, :rows, :columns] - teacher[:, :, :rows, :columns]).square().mean(dim=1)
        valid = torch.zeros_like(squared)
        for valid_per_image, (height, width) in zip(valid, image_sizes, strict=True):
            valid_rows = count_valid_cells(height / self.stride, rows)
            valid_columns = count_valid_cells(width / self.stride, columns)
            valid_per_image[:valid_rows, :valid_columns] = 1
        return (squared * valid).sum() / valid.sum()


@DISTILLATION_LOSS_REGISTRY.register()
class RegionCosineLoss(DistillationLoss):
    """One minus the mean cosine between the vectors that random regions have on the two maps.

    It compares what retrieval compares: regions pooled by the model's own pooler. The whole photo is one more region.
    The regions come from torch's global generator.

    Args:
        region_pooler: as the embedding head's.
        student_stride, teacher_stride: in pixels of the student's photo.
        num_regions: random regions an image; > 0.
        region_sides: smallest and largest side of a region, as shares of the photo's; sides are log-uniform.

    Raises:
        ValueError: if the number of regions or their sides are out of range.
    """

    name = "loss_distill_region_cosine"

    @configurable
    def __init__(
        self,
        *,
        region_pooler: RegionPooler | AreaRegionPooler,
        student_stride: float,
        teacher_stride: float,
        num_regions: int = 8,
        region_sides: tuple[float, float] = (0.2, 1.0),
    ) -> None:
        super().__init__()
        if num_regions < 1:
            raise ValueError(f"MODEL.OESIR.DISTILLATION.NUM_REGIONS is {num_regions}; allowed: at least 1")
        smallest, largest = region_sides
        if not 0 < smallest <= largest <= 1:
            raise ValueError(
                f"MODEL.OESIR.DISTILLATION.REGION_SIDES is {list(region_sides)}; allowed: 0 < min <= max <= 1"
            )
        self.region_pooler = region_pooler
        self.student_stride, self.teacher_stride = student_stride, teacher_stride
        self.num_regions = num_regions
        self.region_sides = (smallest, largest)

    @classmethod
    def from_config(cls, cfg: CfgNode, student_shape: ShapeSpec, teacher_shape: ShapeSpec) -> dict[str, Any]:
        options = cfg.MODEL.OESIR.DISTILLATION
        return {
            "region_pooler": build_region_pooler(cfg),
            "student_stride": student_shape.stride,
            "teacher_stride": teacher_shape.stride,
            "num_regions": options.NUM_REGIONS,
            "region_sides": tuple(options.REGION_SIDES),
        }

    def forward(
        self, student_map: torch.Tensor, teacher_map: torch.Tensor, image_sizes: list[tuple[int, int]]
    ) -> torch.Tensor:
        boxes = [self.draw_regions(size) for size in image_sizes]
        student = self.region_pooler(student_map, boxes, 1 / self.student_stride, image_sizes)
        teacher = self.region_pooler(teacher_map, boxes, 1 / self.teacher_stride, image_sizes)
        return self.compare(student, teacher)

    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        """The loss between pooled vectors, (N * (1 + R), C) each."""
        return 1 - F.cosine_similarity(student, teacher, dim=1).mean()

    def draw_regions(self, image_size: tuple[int, int]) -> torch.Tensor:
        """The whole photo, then random boxes inside it: (1 + R, 4) float32, XYXY in pixels of the student's photo."""
        corner = torch.tensor([image_size[1], image_size[0]], dtype=torch.float32)
        smallest, largest = (math.log(side) for side in self.region_sides)
        sides = torch.exp(smallest + (largest - smallest) * torch.rand(self.num_regions, 2)) * corner
        top_left = torch.rand(self.num_regions, 2) * (corner - sides)
        boxes = torch.cat([top_left, top_left + sides], dim=1)
        return torch.cat([torch.cat([torch.zeros(2), corner])[None], boxes])


@DISTILLATION_LOSS_REGISTRY.register()
class WhitenedRegionCosineLoss(RegionCosineLoss):
    """As :class:`RegionCosineLoss`, between vectors that were whitened by a whitening of the teacher's regions.

    Retrieval whitens, so that the weak directions of the teacher's vectors count as much as the strong ones; without
    this loss a student learns the strong ones and little else.

    Args:
        whitening: fitted on region vectors of the teacher's map; it is not trained.
        **kwargs: of RegionCosineLoss.
    """

    name = "loss_distill_whitened_region_cosine"

    @configurable
    def __init__(self, *, whitening: PCAWhitening, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.whitening = whitening

    @classmethod
    def from_config(cls, cfg: CfgNode, student_shape: ShapeSpec, teacher_shape: ShapeSpec) -> dict[str, Any]:
        arguments = super().from_config(cfg, student_shape, teacher_shape)
        reference = cfg.MODEL.OESIR.DISTILLATION.WHITENING
        if not reference:
            raise ValueError(
                "WhitenedRegionCosineLoss needs MODEL.OESIR.DISTILLATION.WHITENING, which is empty; allowed: a file of "
                "tools/fit_whitening.py of the teacher's map (MODEL.OESIR.EMBEDDING.SOURCE TeacherSource)"
            )
        whitening, _ = load_whitening(resolve_weights(reference))
        if whitening.input_dim != teacher_shape.channels:
            raise ValueError(
                f"MODEL.OESIR.DISTILLATION.WHITENING {reference!r} is of vectors of {whitening.input_dim} dimensions; "
                f"the teacher's map has {teacher_shape.channels} channels"
            )
        return arguments | {"whitening": whitening}

    def compare(self, student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
        return super().compare(self.whitening(student), self.whitening(teacher))


def compute_distillation_losses(
    losses: Iterable[DistillationLoss],
    weights: Iterable[float],
    student_map: torch.Tensor,
    teacher_map: torch.Tensor,
    image_sizes: list[tuple[int, int]],
) -> dict[str, torch.Tensor]:
    """The losses of a batch by name, each times its weight; arguments as :meth:`DistillationLoss.forward`.

    They sum over many cells and channels, so they are in float32 whatever precision the networks have.
    """
    with torch.autocast(student_map.device.type, enabled=False):
        student_map, teacher_map = student_map.float(), teacher_map.float()
        return {
            loss.name: weight * loss(student_map, teacher_map, image_sizes)
            for weight, loss in zip(weights, losses, strict=True)
        }


def build_distillation_losses(
    cfg: CfgNode, student_shape: ShapeSpec, teacher_shape: ShapeSpec
) -> list[tuple[float, DistillationLoss]]:
    """The losses that ``MODEL.OESIR.DISTILLATION`` names, each with its weight.

    Raises:
        ValueError: no loss, one that is unknown or named twice, or as many weights as there are no losses.
    """
    names, weights = list(cfg.MODEL.OESIR.DISTILLATION.LOSSES), list(cfg.MODEL.OESIR.DISTILLATION.LOSS_WEIGHTS)
    if not names or len(set(names)) < len(names):
        raise ValueError(
            f"MODEL.OESIR.DISTILLATION.LOSSES is {names}; allowed: one or more of "
            f"{sorted(name for name, _ in DISTILLATION_LOSS_REGISTRY)}, each once"
        )
    if len(weights) != len(names) or min(weights) <= 0:
        raise ValueError(
            f"MODEL.OESIR.DISTILLATION.LOSS_WEIGHTS is {weights}; allowed: a number > 0 for each of {names}"
        )
    return [
        (
            float(weight),
            get_registered(DISTILLATION_LOSS_REGISTRY, name, "MODEL.OESIR.DISTILLATION.LOSSES")(
                cfg, student_shape, teacher_shape
            ),
        )
        for name, weight in zip(names, weights, strict=True)
    ]
