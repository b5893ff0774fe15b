"""The meta-architecture of the contrastive stage: embeddings that know the same object, not the same kind of object.

Shape shorthand: R regions of all views of a batch, M regions in memory, C channels of the map, D dimensions of an
embedding.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from oesir_d2.modeling.contrastive_losses import ContrastiveLoss, build_contrastive_loss
from oesir_d2.modeling.distillation import drop_training_only, enlarge, expect_no_training_only
from oesir_d2.modeling.embedding_source import TeacherSource
from oesir_d2.modeling.losses import DistillationLoss, build_distillation_losses, compute_distillation_losses
from oesir_d2.modeling.meta_arch import OESIR
from oesir_d2.modeling.student_source import StudentSource
from oesir_d2.modeling.teacher import Teacher, build_teacher

CPU_PART = 4
"""Views that a frozen network takes at a time on a CPU: more take twice the time, most of it to get the memory."""


class RegionMemory(nn.Module):
    """The last regions of earlier batches, as further negatives; no part of the state dict.

    It holds pooled vectors, which are projected anew for each batch. Embeddings would be those of earlier projections,
    and one that drifts away from them all at once, by its mean, lowers the loss and learns nothing. That, and that one
    label a region cannot say that a pair is neither positive nor negative, is why this is not
    pytorch-metric-learning's CrossBatchMemory.

    Args:
        size: how many, >= 0.
        channels: C.
    """

    def __init__(self, size: int, channels: int) -> None:
        super().__init__()
        self.size = size
        self.register_buffer("vectors", torch.zeros(size, channels), persistent=False)
        self.register_buffer("photos", torch.zeros(size, dtype=torch.int64), persistent=False)
        self.count = 0  # of all that were ever added

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """The vectors (M, C) and the numbers of their photos (M,), M at most ``size``."""
        filled = min(self.count, self.size)
        return self.vectors[:filled].clone(), self.photos[:filled].clone()

    def add(self, vectors: torch.Tensor, photos: torch.Tensor) -> None:
        """Put vectors in the place of the oldest ones."""
        if self.size == 0:
            return
        vectors, photos = vectors[-self.size :], photos[-self.size :]
        places = (self.count + torch.arange(len(vectors), device=vectors.device)) % self.size
        self.vectors[places] = vectors.detach().to(self.vectors)
        self.photos[places] = photos
        self.count += len(vectors)


@META_ARCH_REGISTRY.register()
class OESIRContrastive(OESIR):
    """An OESIR whose training makes embeddings of one object's views agree; in eval mode it is an OESIR.

    What learns is the whitening, as a projection with its mean, and a student, if it is the embedding source. All else
    is frozen, and everything stays in eval mode: views around objects do not have the statistics of whole photos. The
    state dict is that of an OESIR of the same config.

    Args:
        loss: of pairs of regions. Pairs of one object are positive; pairs of two objects of one photo, and any pair of
            a region and a piece of background of the same photo, are neither positive nor negative.
        weight: of that loss.
        memory_size: regions of earlier batches that serve as negatives.
        train_student: whether a student learns.
        projection_pull: weight of the squared distance of the projection from the one that the model is built with,
            relative to its squared length.
        teacher: for the distillation losses; None if there are none.
        distillation_losses: each with its weight.
        teacher_scale: factor by which photos are enlarged for the teacher.
        **kwargs: of OESIR.

    Raises:
        ValueError: if a number is out of range, or what it asks for is not there.
    """

    @configurable
    def __init__(
        self,
        *,
        loss: ContrastiveLoss,
        weight: float = 1.0,
        memory_size: int = 4096,
        train_student: bool = True,
        projection_pull: float = 0.0,
        teacher: Teacher | None = None,
        distillation_losses: list[tuple[float, DistillationLoss]] | None = None,
        teacher_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        options = "MODEL.OESIR.CONTRASTIVE"
        if not weight > 0:
            raise ValueError(f"{options}.WEIGHT is {weight}; allowed: over 0")
        if memory_size < 0:
            raise ValueError(f"{options}.MEMORY_SIZE is {memory_size}; allowed: 0 or more")
        if not projection_pull >= 0:
            raise ValueError(f"{options}.PROJECTION_PULL is {projection_pull}; allowed: 0 or more")
        head = self.roi_heads.embedding_head
        if projection_pull and not (head.whitening and head.whitening.fitted):
            raise ValueError(
                f"{options}.PROJECTION_PULL is {projection_pull}, but there is nothing to pull the projection to; set "
                "MODEL.OESIR.EMBEDDING.WHITENING, or it to 0"
            )
        self.loss, self.weight = loss, weight
        self.memory = RegionMemory(memory_size, self.embedding_source.output_shape.channels)
        self.projection_pull = projection_pull
        self.teacher = teacher
        self.distillation_losses = nn.ModuleList(item for _, item in distillation_losses or ())
        self.distillation_weights = [item_weight for item_weight, _ in distillation_losses or ()]
        self.teacher_scale = teacher_scale
        self.requires_grad_(False)
        if train_student and isinstance(self.embedding_source, StudentSource):
            self.embedding_source.requires_grad_(True)
        if head.whitening is not None:
            head.whitening.thaw().requires_grad_(True)
            self.register_buffer("projection_start", head.whitening.projection.detach().clone(), persistent=False)
        self.register_state_dict_post_hook(drop_training_only)
        self.register_load_state_dict_post_hook(expect_no_training_only)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        options = cfg.MODEL.OESIR.CONTRASTIVE
        arguments = super().from_config(cfg) | {
            "loss": build_contrastive_loss(cfg),
            "weight": options.WEIGHT,
            "memory_size": options.MEMORY_SIZE,
            "train_student": options.TRAIN_STUDENT,
            "projection_pull": options.PROJECTION_PULL,
        }
        if not options.DISTILLATION_WEIGHT:
            return arguments
        source = arguments["embedding_source"]
        if options.DISTILLATION_WEIGHT < 0 or not isinstance(source, StudentSource):
            raise ValueError(
                f"MODEL.OESIR.CONTRASTIVE.DISTILLATION_WEIGHT is {options.DISTILLATION_WEIGHT} with the embedding "
                f"source {type(source).__name__!r}; allowed: 0, and more with 'StudentSource'"
            )
        scale = cfg.MODEL.OESIR.DISTILLATION.TEACHER_SCALE
        if scale < 1:
            raise ValueError(f"MODEL.OESIR.DISTILLATION.TEACHER_SCALE is {scale}; allowed: at least 1")
        teacher = build_teacher(cfg)
        shape = ShapeSpec(channels=teacher.output_shape.channels, stride=teacher.output_shape.stride / scale)
        losses = build_distillation_losses(cfg, source.output_shape, shape)
        return arguments | {
            "teacher": teacher,
            "teacher_scale": scale,
            "distillation_losses": [(options.DISTILLATION_WEIGHT * weight, loss) for weight, loss in losses],
        }

    def train(self, mode: bool = True) -> OESIRContrastive:
        """Say what a forward pass does; every part stays in eval mode."""
        super().train(False)
        self.training = mode
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Compare the objects of a batch in training mode, detect and embed in eval mode.

        Args:
            batched_inputs: in training as :class:`oesir_d2.data.object_pairs.ObjectPairMapper` gives them: ``views``,
                each with ``image`` and ``instances``; in eval mode as for OESIR.

        Returns:
            In training ``{"loss_...": scalar}``, weighted; in eval mode what OESIR gives.

        Raises:
            ValueError: in training, if the whitening is not fitted.
        """
        if not self.training:
            return super().forward(batched_inputs)
        views = [view for item in batched_inputs for view in item["views"]]
        instances = [view["instances"].to(self.device) for view in views]
        head = self.roi_heads.embedding_head
        if head.whitening is not None:
            _normalize_projection(head.whitening.projection)
        embedding_map, image_sizes = self._compute_map(views)
        vectors = head.pool_regions(embedding_map, [item.gt_boxes.tensor for item in instances], image_sizes)
        objects = torch.cat([item.gt_objects for item in instances])
        photos = torch.cat([item.gt_photos for item in instances])
        losses = {self.loss.name: self.weight * self._compare(vectors, objects, photos)}
        if self.teacher is not None:
            losses |= self._distil(views, embedding_map, image_sizes)
        if self.projection_pull:
            losses["loss_projection_pull"] = self.projection_pull * self._measure_pull()
        return losses

    def _compute_map(self, views: list[dict[str, Any]]) -> tuple[torch.Tensor, list[tuple[int, int]]]:
        """The embedding map of the views, with a student's gradient, and their sizes without padding."""
        images = self.preprocess_image(views)
        features: dict[str, torch.Tensor] = {}
        if not isinstance(self.embedding_source, TeacherSource):
            with torch.no_grad():
                parts = [self.backbone(part) for part in images.tensor.split(self._get_part_size(len(views)))]
            features = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        raw_images = [self._move_to_current_device(view["image"]) for view in views]
        return self.embedding_source(raw_images, features), images.image_sizes

    def _get_part_size(self, num_views: int) -> int:
        """How many views a frozen network takes at a time."""
        return CPU_PART if self.device.type == "cpu" else num_views

    def _compare(self, vectors: torch.Tensor, objects: torch.Tensor, photos: torch.Tensor) -> torch.Tensor:
        """The loss of the batch's pooled regions (R, C) against each other and the memory, which takes them up."""
        remembered, remembered_photos = self.memory.read()
        self.memory.add(vectors, photos)
        references = torch.cat([vectors, remembered])
        whitening = self.roi_heads.embedding_head.whitening
        if whitening is not None:
            references = whitening(references)
        is_positive, is_negative = choose_pairs(objects, photos, remembered_photos)
        # Background has no second view; it is there as a negative of others.
        is_anchor = is_positive.any(dim=1)
        anchors = references[: len(vectors)][is_anchor]
        is_positive, is_negative = is_positive[is_anchor], is_negative[is_anchor]
        if has_event_storage() and len(anchors):
            _log_agreement(anchors, references, is_positive, is_negative, len(vectors))
        return self.loss(anchors, references, is_positive, is_negative)

    def _distil(
        self, views: list[dict[str, Any]], embedding_map: torch.Tensor, image_sizes: list[tuple[int, int]]
    ) -> dict[str, torch.Tensor]:
        images = [enlarge(self._move_to_current_device(view["image"]), self.teacher_scale) for view in views]
        size = self._get_part_size(len(images))
        parts = [self.teacher(images[start : start + size]) for start in range(0, len(images), size)]
        rows, columns = (max(part.shape[dim] for part in parts) for dim in (2, 3))
        # The losses leave padding out.
        padded = [F.pad(part, (0, columns - part.shape[3], 0, rows - part.shape[2])) for part in parts]
        teacher_map = torch.cat(padded)
        return compute_distillation_losses(
            self.distillation_losses, self.distillation_weights, embedding_map, teacher_map, image_sizes
        )

    def _measure_pull(self) -> torch.Tensor:
        projection = self.roi_heads.embedding_head.whitening.projection
        start = self.projection_start * (projection.detach().norm() / self.projection_start.norm())
        return (projection - start).square().sum() / start.square().sum()


def choose_pairs(
    objects: torch.Tensor, photos: torch.Tensor, remembered_photos: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Which regions of a batch are to come together, and which apart.

    Args:
        objects: (R,) the same number for views of one object only.
        photos: (R,) the number of the photo that a region shows.
        remembered_photos: (M,) the same of what is in memory.

    Returns:
        Two (R, R + M) bool: positive pairs, those of two views of one object in this batch; and negative ones, of
        different photos.
    """
    is_negative = photos[:, None] != torch.cat([photos, remembered_photos])[None]
    is_positive = torch.zeros_like(is_negative)
    num_regions = len(objects)
    is_positive[:, :num_regions] = objects[:, None] == objects[None]
    is_positive[:, :num_regions].fill_diagonal_(False)
    return is_positive, is_negative


@torch.no_grad()
def _normalize_projection(projection: torch.Tensor) -> None:
    """Scale a projection (D, C), in place, so that its rows have the mean squared length 1.

    That leaves embeddings as they are, but it decides how far a step of the optimizer goes: the rows of a whitening
    are as long as the variance is small.
    """
    length = projection.norm()
    if length > 0:
        projection *= math.sqrt(len(projection)) / length


@torch.no_grad()
def _log_agreement(
    anchors: torch.Tensor,
    references: torch.Tensor,
    is_positive: torch.Tensor,
    is_negative: torch.Tensor,
    num_regions: int,
) -> None:
    """Log how often a view's nearest region is the other view of its object, and the mean cosine of the two.

    The mean cosine of the batch's negatives tells a student that learns from one that leaves the memory behind: it must
    not rise.
    """
    cosines = anchors.float() @ references.float().T
    nearest_other = cosines.masked_fill(~is_negative, -1).amax(dim=1)
    nearest_own = cosines.masked_fill(~is_positive, -1).amax(dim=1)
    storage = get_event_storage()
    storage.put_scalar("contrastive/recall@1", (nearest_own > nearest_other).float().mean().item())
    storage.put_scalar("contrastive/positive_cosine", cosines[is_positive].mean().item())
    in_batch = cosines[:, :num_regions][is_negative[:, :num_regions]]
    if len(in_batch):
        storage.put_scalar("contrastive/negative_cosine", in_batch.mean().item())
