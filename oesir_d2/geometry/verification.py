"""Does a photo show what the query shows? Keypoints are matched, and a plausible transform must explain the matches."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

from .confidence import match_confidence
from .features import LocalFeatures
from .findings import GeometricMatch
from .hypotheses import find_consensus, keep_distinct
from .matching import match_descriptors
from .transforms import PlausibleRange, apply_transform, describe_transform, fit_similarity, is_plausible

MIN_INLIERS = 4
"""Fewer correspondences are no evidence: with three, a similarity is overdetermined by two numbers only."""

MIN_PART_INLIERS = 3
"""For a part of a query these are worth a look: whether the source looks like the part decides."""

# A homography has eight degrees of freedom; with fewer correspondences it follows their errors.
_MIN_FOR_HOMOGRAPHY = 12
_MAGSAC_ITERATIONS = 2000


@dataclass(frozen=True)
class VerificationOptions:
    """How matches are verified.

    Attributes:
        max_ratio: of the ratio test, in (0, 1].
        coarse_tolerance: pixels of the query by which a point may miss a hypothesis made of a single pair.
        tolerance: pixels of the query by which an inlier may miss the final transform.
        allowed: transforms that are believed.
        min_inliers: correspondences that a match has at least; > 2.
    """

    max_ratio: float = 0.9
    coarse_tolerance: float = 5.0
    tolerance: float = 3.0
    allowed: PlausibleRange = field(default_factory=PlausibleRange)
    min_inliers: int = MIN_INLIERS


PART_OPTIONS = VerificationOptions(min_inliers=MIN_PART_INLIERS)
"""How a part of a query is compared."""


class QueryFeatures:
    """Keypoints of a query, or of a part of it, prepared for many comparisons: as they are, and mirrored once.

    Args:
        features: the keypoints, in pixels of the query.
        width: of the query, in pixels.
    """

    def __init__(self, features: LocalFeatures, width: int) -> None:
        self.width = width
        self.views = (features, features.mirrored(width))
        self.descriptors = tuple(view.unit_descriptors() for view in self.views)

    def __len__(self) -> int:
        return len(self.views[0])


def verify_match(
    query: QueryFeatures,
    source: LocalFeatures,
    options: VerificationOptions = VerificationOptions(),  # noqa: B008 - it is immutable
) -> GeometricMatch | None:
    """Look for a transform that lays a source over the query, mirrored or not.

    Args:
        query: keypoints of the query or of a part of it.
        source: keypoints of the source.
        options: how.

    Returns:
        The better of the two, by its inliers; None if neither has enough of a plausible transform.
    """
    descriptors = source.unit_descriptors()
    found: GeometricMatch | None = None
    for flipped, (view, view_descriptors) in enumerate(zip(query.views, query.descriptors, strict=True)):
        pairs = match_descriptors(view_descriptors, descriptors, options.max_ratio)
        match = _fit(view, source, pairs, query.width if flipped else None, options)
        if match is not None and (found is None or match.inliers > found.inliers):
            found = match
    return found


def _fit(
    query: LocalFeatures,
    source: LocalFeatures,
    pairs: np.ndarray,
    mirror_width: int | None,
    options: VerificationOptions,
) -> GeometricMatch | None:
    """The transform of one view of the query; ``mirror_width`` is the query's width if that view is mirrored."""
    if len(pairs) < options.min_inliers:
        return None
    agreeing = find_consensus(query, source, pairs, options.coarse_tolerance, options.allowed.scale)
    if len(agreeing) < options.min_inliers:
        return None
    query_points, source_points = query.points[pairs[:, 0]], source.points[pairs[:, 1]]
    refined = _refine(query_points, source_points, agreeing, options)
    if refined is None:
        return None
    transform, inliers = refined
    query_points, source_points = query_points[inliers].copy(), source_points[inliers]
    if mirror_width is not None:
        query_points[:, 0] = mirror_width - 1 - query_points[:, 0]
        transform = np.array([[-1.0, 0.0, mirror_width - 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]) @ transform
    scale, rotation, flipped = describe_transform(transform, source_points.mean(axis=0))
    confidence = match_confidence(len(inliers))
    return GeometricMatch(transform, flipped, scale, rotation, query_points, source_points, confidence)


def _refine(
    query_points: np.ndarray, source_points: np.ndarray, agreeing: np.ndarray, options: VerificationOptions
) -> tuple[np.ndarray, np.ndarray] | None:
    """The final transform and its inliers among all pairs, from those that agree roughly."""
    transform = fit_similarity(source_points[agreeing], query_points[agreeing])
    inliers = _find_inliers(transform, query_points, source_points, options.coarse_tolerance)
    if len(inliers) >= _MIN_FOR_HOMOGRAPHY:
        homography = _fit_homography(query_points[inliers], source_points[inliers], options.tolerance)
        if homography is not None and is_plausible(homography, source_points[inliers], False, options.allowed):
            its_inliers = _find_inliers(homography, query_points, source_points, options.tolerance)
            if len(its_inliers) >= 0.8 * len(inliers):
                return homography, its_inliers
    for _ in range(3):
        if len(inliers) < options.min_inliers:
            return None
        transform = fit_similarity(source_points[inliers], query_points[inliers])
        inliers = _find_inliers(transform, query_points, source_points, options.tolerance)
    if len(inliers) < options.min_inliers or not is_plausible(
        transform, source_points[inliers], False, options.allowed
    ):
        return None
    return transform, inliers


def _fit_homography(query_points: np.ndarray, source_points: np.ndarray, tolerance: float) -> np.ndarray | None:
    homography, _ = cv2.findHomography(
        source_points.astype(np.float64),
        query_points.astype(np.float64),
        cv2.USAC_MAGSAC,
        tolerance,
        maxIters=_MAGSAC_ITERATIONS,
        confidence=0.999,
    )
    if homography is None or abs(homography[2, 2]) < 1e-9:
        return None
    return homography / homography[2, 2]


def _find_inliers(
    transform: np.ndarray, query_points: np.ndarray, source_points: np.ndarray, tolerance: float
) -> np.ndarray:
    errors = np.linalg.norm(apply_transform(transform, source_points) - query_points, axis=1)
    near = np.flatnonzero(errors < tolerance)
    return near[keep_distinct(query_points[near], source_points[near], errors[near])]
