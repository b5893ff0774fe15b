"""The student as the source of the embedding map: one forward pass detects and embeds."""

from __future__ import annotations

from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.layers import ShapeSpec

from oesir_d2.modeling.embedding_source import EMBEDDING_SOURCE_REGISTRY, EmbeddingSource
from oesir_d2.modeling.students import Student, build_student
from oesir_d2.modeling.teacher import build_teacher


@EMBEDDING_SOURCE_REGISTRY.register()
class StudentSource(EmbeddingSource):
    """The map of a student, which works on what the detector has computed already.

    Args:
        student: its ``output_shape`` is this source's.
    """

    @configurable
    def __init__(self, *, student: Student) -> None:
        super().__init__()
        self.student = student
        self.output_shape = student.output_shape

    @classmethod
    def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
        return {"student": build_student(cfg, input_shape, build_student_shape(cfg))}

    def forward(self, images: list[torch.Tensor], features: dict[str, torch.Tensor]) -> torch.Tensor:
        return self.student(images, features)


def build_student_shape(cfg: CfgNode) -> ShapeSpec:
    """The channels of the configured teacher, and its stride unless ``MODEL.OESIR.STUDENT.STRIDE`` gives another."""
    shape = build_teacher_shape(cfg)
    return ShapeSpec(channels=shape.channels, stride=cfg.MODEL.OESIR.STUDENT.STRIDE or shape.stride)


def build_teacher_shape(cfg: CfgNode) -> ShapeSpec:
    """Channels and stride of the configured teacher's map, without its weights: a trained student runs without it."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.OESIR.TEACHER.WEIGHTS = ""
    with torch.device("meta"):
        return build_teacher(cfg).output_shape
