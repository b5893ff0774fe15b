"""Where the edit lies: what of the query its host does not explain, and what of it a donor does.

All photos are at working size here. Shape shorthand: H, W of the query.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .beyond import find_beyond
from .difference import Difference, compute_difference
from .findings import GeometricMatch, PartKind, SplicePart
from .regions import RegionOptions, fill_holes, find_regions, split_regions, tight_box, trace_polygons
from .transforms import apply_transform

AGREEING_DEVIATION = 3.0
"""Below this deviation a pixel of the query is taken for one of the source."""

# So far around a region its donor is looked for, where the host resembles it; as a share of the region's longer side.
_OUTGROWTH = 0.3
# Around the inliers of a donor, what agrees with it is the object; as a share of the inliers' extent.
_REACH = 0.35


@dataclass(frozen=True)
class Comparison:
    """A query compared with a photo that is laid over it.

    Attributes:
        difference: how the two differ.
        explained: share of the query's pixels that agree with the photo, in [0, 1].
        beyond: (H, W) bool, what the query shows where the photo has no pixel; plain margins are left out.
    """

    difference: Difference
    explained: float
    beyond: np.ndarray

    @property
    def agrees(self) -> np.ndarray:
        """(H, W) bool, the pixels of the query that agree with the photo."""
        return find_agreement(self.difference)

    def find_edits(self, options: RegionOptions = RegionOptions()) -> list[np.ndarray]:  # noqa: B008 - it is immutable
        """The regions that the photo does not explain: masks (H, W) bool, disjoint, the largest first.

        What differs from it, and what lies beyond it.
        """
        regions = find_regions(self.difference.deviation, self.difference.distance, options)
        beyond = self.beyond & ~np.logical_or.reduce([np.zeros_like(self.beyond), *regions])
        regions += split_regions(beyond, options.min_area)
        return sorted(regions, key=np.count_nonzero, reverse=True)[: options.max_regions]


def compare(query: np.ndarray, source: np.ndarray, match: GeometricMatch) -> Comparison:
    """Lay a source over the query.

    Args:
        query: (H, W, 3) uint8 RGB.
        source: (h, w, 3) uint8 RGB.
        match: from the source to the query.
    """
    difference = compute_difference(query, source, match.transform)
    beyond = find_beyond(query, difference.valid, RegionOptions())
    return Comparison(difference, float(find_agreement(difference).mean()), beyond)


def find_agreement(difference: Difference) -> np.ndarray:
    """Where a source has pixels and the query is like them, (H, W) bool."""
    return difference.valid & (difference.deviation < AGREEING_DEVIATION)


def find_shown_part(query: np.ndarray, source: np.ndarray, match: GeometricMatch) -> np.ndarray:
    """What the query shows of a donor where no host tells it: around the inliers, what agrees with the donor.

    Args:
        query: (H, W, 3) uint8 RGB.
        source: (h, w, 3) uint8 RGB.
        match: from the source to the query.

    Returns:
        (H, W) bool, not empty.
    """
    height, width = query.shape[:2]
    hull = find_hull(match, (height, width))
    near = find_hull(match, (height, width), max(3, round(_REACH * float(np.ptp(match.query_points, axis=0).max()))))
    difference = compute_difference(query, source, match.transform, fit_where=hull)
    agrees = (near & find_agreement(difference)).astype(np.uint8)
    agrees = cv2.morphologyEx(agrees, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    agrees = cv2.morphologyEx(fill_holes(agrees), cv2.MORPH_CLOSE, np.ones((7, 7), np.uint8))
    # Of what agrees by chance nothing holds an inlier.
    _, labels = cv2.connectedComponents(agrees)
    columns, rows = np.rint(match.query_points).astype(int).T
    labels_of_inliers = labels[rows.clip(0, height - 1), columns.clip(0, width - 1)]
    shown = np.isin(labels, labels_of_inliers[labels_of_inliers > 0]) & (agrees > 0)
    return shown if shown.any() else hull


def find_hull(match: GeometricMatch, size: tuple[int, int], rim: int = 0) -> np.ndarray:
    """Where the inliers of a match lie in the query.

    Args:
        match: from the source to the query.
        size: (H, W) of the query.
        rim: by how many pixels their hull is enlarged.

    Returns:
        (H, W) bool, not empty.
    """
    hull = np.zeros(size, np.uint8)
    cv2.fillConvexPoly(hull, cv2.convexHull(np.rint(match.query_points).astype(np.int32)), 1)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * rim + 1, 2 * rim + 1))
    return cv2.dilate(hull, disc) > 0


def refine_with_donor(
    region: np.ndarray, host: Difference, query: np.ndarray, source: np.ndarray, match: GeometricMatch
) -> np.ndarray:
    """Redraw the outline of a region, now that its donor is known: a pixel belongs to the photo that it is more like.

    Args:
        region: (H, W) bool.
        host: how the query differs from its host.
        query: (H, W, 3) uint8 RGB.
        source: (h, w, 3) uint8 RGB, the donor.
        match: from the donor to the query.

    Returns:
        (H, W) bool, not empty.
    """
    core = cv2.erode(region.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    donor = compute_difference(query, source, match.transform, fit_where=core if core.any() else region)
    x0, y0, x1, y1 = tight_box(region)
    reach = max(2, round(_OUTGROWTH * max(x1 - x0, y1 - y0)))
    near = np.zeros(region.shape, bool)
    near[max(y0 - reach, 0) : y1 + reach, max(x0 - reach, 0) : x1 + reach] = True
    # Positive where the donor explains a pixel better; only where the two differ at all does it tell anything.
    preference = cv2.GaussianBlur(host.distance - donor.distance, (0, 0), 1.0)
    is_donor = donor.valid & (preference > 1.0) & (host.distance > 2.0)
    is_host = host.valid & (preference < -1.0)
    redrawn = ((region & ~(is_host & ~core)) | (near & is_donor)).astype(np.uint8)
    redrawn = fill_holes(redrawn)
    _, labels = cv2.connectedComponents(redrawn, connectivity=4)
    kept = np.unique(labels[region & (redrawn > 0)])
    connected = np.isin(labels, kept)
    overlap = np.count_nonzero(connected & region)
    # A donor that is laid badly would redraw nonsense.
    return connected if overlap > 0.5 * np.count_nonzero(region) else region


def make_part(
    mask: np.ndarray,
    kind: PartKind,
    confidence: float,
    source_id: str | None = None,
    match: GeometricMatch | None = None,
) -> SplicePart:
    """Describe a part of the query.

    Args:
        mask: (H, W) bool, not empty.
        kind, confidence, source_id, match: see ``SplicePart``.
    """
    x0, y0, x1, y1 = tight_box(mask)
    return SplicePart(
        kind=kind,
        box=(float(x0), float(y0), float(x1), float(y1)),
        polygons=trace_polygons(mask),
        area=float(mask.mean()),
        source_id=source_id,
        match=match,
        confidence=confidence,
    )


def express_within_query(copied: GeometricMatch, host: GeometricMatch) -> GeometricMatch:
    """A match from the host to the query as one within the query.

    Copy-move: what a region shows lies elsewhere in the host too, and so elsewhere in the query.

    Args:
        copied: from the host to the region, found with the region's keypoints alone.
        host: from the host to the query.

    Returns:
        The same with the points of the source, and the transform, from pixels of the query to pixels of the query.
    """
    transform = copied.transform @ np.linalg.inv(host.transform)
    source_points = apply_transform(host.transform, copied.source_points).astype(np.float32)
    return GeometricMatch(
        transform=transform / transform[2, 2],
        flipped=copied.flipped != host.flipped,
        scale=copied.scale / host.scale,
        rotation=copied.rotation,
        query_points=copied.query_points,
        source_points=source_points,
        confidence=copied.confidence,
        appearance=copied.appearance,
    )
