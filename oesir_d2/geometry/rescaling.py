"""Findings at working size in pixels of the original files.

Photos are analysed at a working size. Pixel edges are what a resize keeps in place, pixel centres are at whole numbers;
so x of the working photo lies at (x + 0.5) * factor - 0.5 in the original.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from .findings import Findings, GeometricMatch, SplicePart
from .transforms import apply_transform, describe_transform


@dataclass(frozen=True)
class PhotoSize:
    """The sizes of a photo, (height, width) in pixels: as it is worked on, and of its original file."""

    working: tuple[int, int]
    original: tuple[int, int]

    def to_original(self) -> np.ndarray:
        """(3, 3) float64, from pixels of the working photo to pixels of the original."""
        fy, fx = (original / working for original, working in zip(self.original, self.working, strict=True))
        return np.array([[fx, 0.0, fx / 2 - 0.5], [0.0, fy, fy / 2 - 0.5], [0.0, 0.0, 1.0]])

    def box_to_original(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """A box XYXY in pixels of the working photo as one of the original."""
        (height, width), (old_height, old_width) = self.original, self.working
        x0, y0, x1, y1 = box
        return x0 * width / old_width, y0 * height / old_height, x1 * width / old_width, y1 * height / old_height

    def box_to_working(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """A box XYXY in pixels of the original as one of the working photo."""
        return PhotoSize(self.original, self.working).box_to_original(box)


def working_size(height: int, width: int, max_long_side: int) -> tuple[int, int]:
    """The size that a photo is worked on at: its longer side at most ``max_long_side`` pixels, never enlarged."""
    factor = min(1.0, max_long_side / max(height, width))
    return max(1, round(height * factor)), max(1, round(width * factor))


def rescale_findings(findings: Findings, query: PhotoSize, sources: dict[str, PhotoSize]) -> Findings:
    """Findings at working size as findings in pixels of the original files.

    Args:
        findings: at working size.
        query: of the query.
        sources: by image id, of every photo that has a match.
    """
    photos = tuple(
        photo
        if photo.match is None
        else replace(photo, match=rescale_match(photo.match, query, sources[photo.image_id]))
        for photo in findings.photos
    )
    parts = tuple(
        _rescale_part(part, query, sources[part.source_id] if part.source_id is not None else query)
        for part in findings.parts
    )
    mask = findings.mask
    if mask is not None and mask.shape != query.original:
        mask = cv2.resize(mask, query.original[::-1], interpolation=cv2.INTER_LINEAR)
        mask = ((mask >= 128) * 255).astype(np.uint8)
    return Findings(photos, parts, mask)


def rescale_match(match: GeometricMatch, query: PhotoSize, source: PhotoSize) -> GeometricMatch:
    """A match between two working photos as one between their originals."""
    query_map, source_map = query.to_original(), source.to_original()
    transform = query_map @ match.transform @ np.linalg.inv(source_map)
    transform /= transform[2, 2]
    source_points = apply_transform(source_map, match.source_points).astype(np.float32)
    scale, rotation, _ = describe_transform(transform, source_points.mean(axis=0))
    return replace(
        match,
        transform=transform,
        scale=scale,
        rotation=rotation,
        query_points=apply_transform(query_map, match.query_points).astype(np.float32),
        source_points=source_points,
    )


def _rescale_part(part: SplicePart, query: PhotoSize, source: PhotoSize) -> SplicePart:
    return replace(
        part,
        box=query.box_to_original(part.box),
        polygons=tuple(apply_transform(query.to_original(), polygon).astype(np.float32) for polygon in part.polygons),
        match=None if part.match is None else rescale_match(part.match, query, source),
    )
