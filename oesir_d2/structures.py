"""The data that every layer of the project exchanges: the embedded regions of one image.

Shape shorthand: N regions of an image, D dimensions of an embedding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

NO_CLASS = -1
"""Class of a region that no classifier named: a grid cell, a given box or the whole image."""


@dataclass(frozen=True)
class ImageEmbeddings:
    """An image as the set of its region embeddings.

    Attributes:
        image_id: identifier of the image, unique within a collection.
        vectors: (N, D) float32, L2-normalised, one row a region.
        boxes: (N, 4) float32, XYXY in pixels of the original image file after its EXIF rotation.
        scores: (N,) float32 in [0, 1], the proposer's confidence; 1 for grid, given and whole-image regions.
        classes: (N,) int64, index into the detector's classes, or ``NO_CLASS``.

    Raises:
        ValueError: if the arrays' shapes do not belong together or a value is not finite.
    """

    image_id: str
    vectors: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2:
            raise ValueError(f"vectors of {self.image_id!r} have shape {self.vectors.shape}, expected (N, D)")
        n = len(self.vectors)
        for name, array, shape in (
            ("boxes", self.boxes, (n, 4)),
            ("scores", self.scores, (n,)),
            ("classes", self.classes, (n,)),
        ):
            if array.shape != shape:
                raise ValueError(f"{name} of {self.image_id!r} have shape {array.shape}, expected {shape}")
        for name, array in (("vectors", self.vectors), ("boxes", self.boxes), ("scores", self.scores)):
            if not np.isfinite(array).all():
                raise ValueError(f"{name} of {self.image_id!r} hold values that are not finite")

    @classmethod
    def from_instances(cls, image_id: str, instances: Any, boxes: np.ndarray | None = None) -> ImageEmbeddings:
        """What an OESIR model found in an image.

        Args:
            image_id: identifier of the image.
            instances: detectron2's Instances with ``embeddings``, ``pred_boxes``, ``scores`` and ``pred_classes``.
            boxes: (N, 4) instead of ``pred_boxes``.
        """
        return cls(
            image_id=image_id,
            vectors=instances.embeddings.float().cpu().numpy(),
            boxes=instances.pred_boxes.tensor.float().cpu().numpy() if boxes is None else boxes,
            scores=instances.scores.float().cpu().numpy(),
            classes=instances.pred_classes.cpu().numpy(),
        )

    def __len__(self) -> int:
        return len(self.vectors)

    @property
    def dimension(self) -> int:
        return self.vectors.shape[1]
