"""The meta-architecture that trains a student: detector and teacher are frozen, the student learns the teacher's map.

Shape shorthand: N images, C channels, S stride of the student's map, T of the teacher's on the student's photo.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.utils.events import get_event_storage, has_event_storage
from torch import nn

from oesir_d2.modeling.losses import DistillationLoss, build_distillation_losses, compute_distillation_losses
from oesir_d2.modeling.meta_arch import OESIR
from oesir_d2.modeling.student_source import StudentSource
from oesir_d2.modeling.teacher import Teacher, build_teacher

TRAINING_ONLY_PREFIXES = ("teacher.", "losses.", "distillation_losses.")
"""Of what a student is taught by, and a model that runs does not have."""


@META_ARCH_REGISTRY.register()
class OESIRDistillation(OESIR):
    """An OESIR whose training is the distillation of its student; in eval mode it is an OESIR.

    Only the student has gradients, and only the student ever leaves eval mode: the statistics of the detector's batch
    norms stay as they are. The state dict is that of an OESIR with the same config, detector and student; the teacher
    is not in it, since its weights are always those of ``MODEL.OESIR.TEACHER.WEIGHTS``.

    Args:
        teacher: the network to learn from.
        losses: each with its weight.
        teacher_scale: factor, >= 1, by which photos are enlarged for the teacher.
        **kwargs: of OESIR; the embedding source must be a :class:`StudentSource`.

    Raises:
        ValueError: if the embedding source is not a student, or the scale is out of range.
    """

    @configurable
    def __init__(
        self,
        *,
        teacher: Teacher,
        losses: list[tuple[float, DistillationLoss]],
        teacher_scale: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not isinstance(self.embedding_source, StudentSource):
            raise ValueError(
                f"MODEL.OESIR.EMBEDDING.SOURCE {type(self.embedding_source).__name__!r} has nothing to distil into; "
                "allowed: 'StudentSource'"
            )
        self.teacher = teacher
        self.losses = nn.ModuleList(loss for _, loss in losses)
        self.loss_weights = [weight for weight, _ in losses]
        self.teacher_scale = teacher_scale
        self.requires_grad_(False)
        self.embedding_source.requires_grad_(True)
        self.register_state_dict_post_hook(drop_training_only)
        self.register_load_state_dict_post_hook(expect_no_training_only)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        scale = cfg.MODEL.OESIR.DISTILLATION.TEACHER_SCALE
        if scale < 1:
            raise ValueError(f"MODEL.OESIR.DISTILLATION.TEACHER_SCALE is {scale}; allowed: at least 1")
        arguments = super().from_config(cfg)
        teacher = build_teacher(cfg)
        shape = ShapeSpec(channels=teacher.output_shape.channels, stride=teacher.output_shape.stride / scale)
        student_shape = arguments["embedding_source"].output_shape
        return arguments | {
            "teacher": teacher,
            "teacher_scale": scale,
            "losses": build_distillation_losses(cfg, student_shape, shape),
        }

    def train(self, mode: bool = True) -> OESIRDistillation:
        """Put the student into training mode; everything else stays in eval mode."""
        super().train(False)
        self.training = mode
        self.embedding_source.train(mode)
        return self

    def forward(self, batched_inputs: list[dict[str, Any]]) -> dict[str, torch.Tensor] | list[dict[str, Any]]:
        """Distil in training mode, detect and embed in eval mode.

        Args:
            batched_inputs: as for OESIR; in training each needs its ``image`` (3, H, W) only. With ``features`` and
                ``teacher_map`` of :meth:`compute_frozen_maps`, detector and teacher do not run.

        Returns:
            In training ``{"loss_distill_...": scalar}``, weighted; in eval mode what OESIR gives.
        """
        if not self.training:
            return super().forward(batched_inputs)
        student_map, teacher_map, image_sizes = self.compute_maps(batched_inputs)
        if has_event_storage():
            self._log_agreement(student_map, teacher_map)
        return compute_distillation_losses(self.losses, self.loss_weights, student_map, teacher_map, image_sizes)

    def compute_maps(
        self, batched_inputs: list[dict[str, Any]]
    ) -> tuple[torch.Tensor, torch.Tensor, list[tuple[int, int]]]:
        """Run the student, and unless the inputs bring their maps, detector and teacher.

        Returns:
            The student's map (N, C, H / S, W / S) with its gradient, the teacher's (N, C, H / T, W / T) without, and
            the (height, width) of each photo as the student sees it, without padding.
        """
        raw_images = [self._move_to_current_device(x["image"]) for x in batched_inputs]
        if "teacher_map" in batched_inputs[0]:
            teacher_map = self._stack([x["teacher_map"] for x in batched_inputs])
            names = batched_inputs[0]["features"]
            features = {name: self._stack([x["features"][name] for x in batched_inputs]) for name in names}
        else:
            features, teacher_map = self.compute_frozen_maps(batched_inputs)
        image_sizes = [(image.shape[1], image.shape[2]) for image in raw_images]
        return self.embedding_source(raw_images, features), teacher_map, image_sizes

    @torch.no_grad()
    def compute_frozen_maps(self, batched_inputs: list[dict[str, Any]]) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
        """Run what does not learn: the maps of the detector that the student takes, by name, and the teacher's."""
        names = self.embedding_source.student.in_features
        features = self.backbone(self.preprocess_image(batched_inputs).tensor) if names else {}
        raw_images = [self._move_to_current_device(x["image"]) for x in batched_inputs]
        teacher_map = self.teacher([enlarge(image, self.teacher_scale) for image in raw_images])
        return {name: features[name] for name in names}, teacher_map

    def _stack(self, maps: list[torch.Tensor]) -> torch.Tensor:
        """Maps (C, h, w) of one size, of whatever precision they were kept in, as a batch."""
        batch = torch.stack([self._move_to_current_device(item).float() for item in maps])
        # As the convolutions give it.
        return batch.contiguous(memory_format=torch.channels_last)

    @torch.no_grad()
    def _log_agreement(self, student_map: torch.Tensor, teacher_map: torch.Tensor) -> None:
        """Log the mean cosine of the two maps' averages, which unlike a loss means the same for every teacher."""
        student, teacher = (feature_map.float().mean(dim=(2, 3)) for feature_map in (student_map, teacher_map))
        get_event_storage().put_scalar("distillation/image_cosine", F.cosine_similarity(student, teacher).mean().item())


def enlarge(image: torch.Tensor, scale: float) -> torch.Tensor:
    """A photo (3, H, W) as the teacher sees it, by ``MODEL.OESIR.DISTILLATION.TEACHER_SCALE``."""
    if scale == 1:
        return image
    size = [round(side * scale) for side in image.shape[1:]]
    return F.interpolate(image[None].float(), size=size, mode="bilinear", align_corners=False, antialias=True)[0]


def drop_training_only(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: dict[str, Any]
) -> None:
    """A hook of state dicts that leaves out what is only there to learn from."""
    prefixes = tuple(prefix + name for name in TRAINING_ONLY_PREFIXES)
    for name in [name for name in state_dict if name.startswith(prefixes)]:
        del state_dict[name]


def expect_no_training_only(module: nn.Module, incompatible_keys: Any) -> None:
    """A hook of loading that does not miss it."""
    missing = incompatible_keys.missing_keys
    missing[:] = [name for name in missing if not name.startswith(TRAINING_ONLY_PREFIXES)]
