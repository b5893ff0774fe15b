"""What geometry found out about a photo: which photos it was made from, where, and on what evidence.

All coordinates are pixels of the original files after their EXIF rotation, (x, y), the centre of the first pixel at
(0, 0). Boxes are XYXY. Shape shorthand: N inlying correspondences, H and W of the query, P points of a polygon.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Role = Literal["host", "donor", "near-duplicate", "unverified"]
"""What a photo of the database is to the query.

host: the photo that things were pasted into, set beside or copied within; most of the query shows it, and some of it
    differs or lies beyond it.
donor: what a part of the query shows was cut from it.
near-duplicate: all of the query but a plain margin shows it and nothing differs, or it shows the same as the host or
    as another donor.
unverified: geometry does not confirm that the query shows anything of it.
"""

PartKind = Literal["donor", "copy-move", "unknown source"]
"""Where a part that differs from the host came from: a photo of the database, another place of the query, neither."""

Doubt = Literal["no match", "few points agree", "too little to see", "looks different", "other pixels"]
"""Why a photo is left unverified. One of "other pixels" shows the same thing, but the part was not cut from it."""

# An object is cut whole from its photo, so that this photo should cover all of the part.
_MIN_OVERLAP = 0.5
# What is smaller than about two of the windows that are correlated has no median.
_MIN_TEXTURED = 200
# Below this correlation a photo speaks against itself.
_LOOKS_ALIKE = 0.6
# So many inliers are no accident, whatever the photo looks like.
_SAME_THING = 6

TRANSFORM_DIGITS = 10
COORDINATE_DECIMALS = 2
CONFIDENCE_DECIMALS = 4


@dataclass(frozen=True)
class Appearance:
    """How a source looks that is laid over a part of the query.

    Attributes:
        overlap: share of the part that the source covers, in [0, 1].
        textured: pixels of the overlap, at working size, that show more than one colour.
        correlation: median over these of the local correlation of both photos' colours, in [-1, 1]; 0 if there are
            none.
        lightness: the same of their lightness alone, which recompression leaves more of.
    """

    overlap: float
    textured: int
    correlation: float
    lightness: float

    @property
    def is_too_small(self) -> bool:
        """Whether too little can be seen of the source to tell anything."""
        return self.overlap < _MIN_OVERLAP or self.textured < _MIN_TEXTURED

    @property
    def is_different(self) -> bool:
        """Whether the source does not look like the part."""
        return self.correlation < _LOOKS_ALIKE

    @property
    def likeness(self) -> float:
        """The better of the two correlations: of one photo one of them is high, whatever was done to its colours."""
        return max(self.correlation, self.lightness)

    def to_dict(self) -> dict[str, float]:
        """As JSON."""
        return {name: round(getattr(self, name), 4) for name in ("overlap", "correlation", "lightness")}


@dataclass(frozen=True)
class GeometricMatch:
    """Evidence that a source photo and the query show the same surface.

    Attributes:
        transform: (3, 3) float64, a homography from the source to the query: pixels (x, y, 1) of the source, times it,
            give pixels of the query up to a factor. Its last element is 1. It mirrors if ``flipped``.
        flipped: whether the query shows the source mirrored.
        scale: by how much the source was enlarged, linear, at the middle of the correspondences.
        rotation: by how many degrees it was turned clockwise as seen, after a mirroring left and right if ``flipped``;
            in (-180, 180].
        query_points: (N, 2) float32, the inliers in the query.
        source_points: (N, 2) float32, the same in the source.
        confidence: calibrated probability that the match is no accident, in [0, 1].
        appearance: how the source looks where it explains a part of the query; None if it was not compared, as a host
            is not, which is compared with the whole query.
    """

    transform: np.ndarray
    flipped: bool
    scale: float
    rotation: float
    query_points: np.ndarray
    source_points: np.ndarray
    confidence: float
    appearance: Appearance | None = None

    @property
    def inliers(self) -> int:
        """N, the number of inlying correspondences."""
        return len(self.query_points)

    def to_dict(self) -> dict[str, Any]:
        """As JSON. "transform" leads from pixels of the source to pixels of the query."""
        return {
            "inliers": self.inliers,
            "confidence": round(self.confidence, CONFIDENCE_DECIMALS),
            "appearance": self.appearance.to_dict() if self.appearance is not None else None,
            "transform": [[float(f"{value:.{TRANSFORM_DIGITS}g}") for value in row] for row in self.transform.tolist()],
            "flipped": self.flipped,
            "scale": round(self.scale, 4),
            "rotation": round(self.rotation, 2),
            "correspondences": [
                {"query": _round_point(query), "source": _round_point(source)}
                for query, source in zip(self.query_points.tolist(), self.source_points.tolist(), strict=True)
            ],
        }


@dataclass(frozen=True)
class SplicePart:
    """A part of the query that its host does not explain, or, where no host was found, that a donor explains.

    Attributes:
        kind: where it came from.
        box: XYXY, tight around the part.
        polygons: its outlines, each (P, 2) float32 points; holes are left out, the mask has them.
        area: share of the query's pixels, in [0, 1].
        source_id: id of the photo that it came from; None unless ``kind`` is "donor".
        match: the evidence: from the source photo, or for "copy-move" from the other place of the query (both sides
            of its correspondences are then points of the query); None for "unknown source".
        confidence: probability that the part came from there; for "unknown source" that it differs from the host.
    """

    kind: PartKind
    box: tuple[float, float, float, float]
    polygons: tuple[np.ndarray, ...]
    area: float
    source_id: str | None
    match: GeometricMatch | None
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """As JSON; the match of a donor stands at the result of that photo, so only that of a copy-move stands here."""
        return {
            "kind": self.kind,
            "source": self.source_id,
            "confidence": round(self.confidence, CONFIDENCE_DECIMALS),
            "box": [round(value, COORDINATE_DECIMALS) for value in self.box],
            "area": round(self.area, 6),
            "polygons": [[_round_point(point) for point in polygon.tolist()] for polygon in self.polygons],
            "copied_from": self.match.to_dict() if self.kind == "copy-move" and self.match is not None else None,
        }


@dataclass(frozen=True)
class PhotoFinding:
    """What a photo of the database is to the query.

    Attributes:
        image_id: the photo.
        role: see ``Role``.
        match: the evidence; None if the photo was not looked at or nothing fitted. An "unverified" photo may have weak
            evidence.
        parts: positions in ``Findings.parts`` of what it explains, for a donor.
    """

    image_id: str
    role: Role = "unverified"
    match: GeometricMatch | None = None
    parts: tuple[int, ...] = ()

    @property
    def verified(self) -> bool:
        """Whether geometry confirms the photo."""
        return self.role != "unverified"

    @property
    def doubt(self) -> Doubt | None:
        """Why the photo is left unverified; None if it is verified."""
        if self.verified:
            return None
        if self.match is None:
            return "no match"
        appearance = self.match.appearance
        if appearance is not None and appearance.is_too_small:
            return "too little to see"
        if appearance is not None and appearance.is_different:
            return "looks different"
        return "other pixels" if self.match.inliers >= _SAME_THING else "few points agree"

    def to_dict(self) -> dict[str, Any]:
        """As JSON, the keys that are added to a result of the search."""
        evidence = (
            self.match.to_dict()
            if self.match is not None
            else {"inliers": 0, "confidence": 0.0, "appearance": None, "transform": None, "flipped": False}
            | {"scale": None, "rotation": None, "correspondences": []}
        )
        verdict = {"verified": self.verified, "role": self.role, "doubt": self.doubt}
        return verdict | evidence | {"parts": list(self.parts)}


@dataclass(frozen=True)
class Findings:
    """All that geometry found out about one query.

    Attributes:
        photos: one for each photo of the answer, in its order: the host first, then the donors; of a box, the donors
            first.
        parts: the parts of the query that were pasted or copied, the largest first; of a box, those in it.
        mask: (H, W) uint8, 255 where a part lies; None if there is neither a host nor a donor to compare with.
    """

    photos: tuple[PhotoFinding, ...] = ()
    parts: tuple[SplicePart, ...] = ()
    mask: np.ndarray | None = field(default=None, repr=False)

    @property
    def host(self) -> PhotoFinding | None:
        """The host, if one was found."""
        return next((photo for photo in self.photos if photo.role == "host"), None)


def _round_point(point: list[float]) -> list[float]:
    return [round(value, COORDINATE_DECIMALS) for value in point]
