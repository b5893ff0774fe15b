"""Which pairs of keypoints agree on one similarity: every pair proposes one, and all others vote.

A pair of SIFT keypoints alone fixes a similarity, by their places, sizes and orientations, so that nothing needs to be
sampled: M pairs make M hypotheses, and the best one is found exactly and always alike. Even a small object with a
handful of correct pairs among many wrong ones is found so, where sampling pairs of pairs drowns.

Points are complex numbers here, x + iy: a similarity without a mirror is z -> a z + b. Shape shorthand: M pairs.
"""

from __future__ import annotations

import numpy as np

from .features import LocalFeatures

MAX_SCALE_RATIO = 1.6
"""Sizes of keypoints are noisy: the scale that a pair tells may differ by so much from that of the hypothesis."""

MAX_TURN_DEGREES = 20.0
"""The same for the rotation."""


def find_consensus(
    query: LocalFeatures,
    source: LocalFeatures,
    pairs: np.ndarray,
    tolerance: float,
    scales: tuple[float, float],
) -> np.ndarray:
    """The largest set of pairs that agree on one similarity from the source to the query.

    Args:
        query: keypoints of the query, mirrored already if a flip is tested.
        source: keypoints of the source.
        pairs: (M, 2) int64 positions in the query and in the source.
        tolerance: how far a point may lie from where the hypothesis expects it, in pixels of the query.
        scales: smallest and largest scale of a hypothesis, enlargement from the source to the query.

    Returns:
        (n,) int64 positions in ``pairs``; of those of one place of the query or of the source only one is kept.
    """
    if len(pairs) == 0:
        return np.zeros(0, np.int64)
    q, s = query.select(pairs[:, 0]), source.select(pairs[:, 1])
    query_points, source_points = _to_complex(q.points), _to_complex(s.points)
    factors = q.sizes / s.sizes * np.exp(1j * (q.angles - s.angles))
    log_scales = np.log(np.abs(factors))
    offsets = query_points - factors * source_points
    # (M, M): row h is a hypothesis, column m a pair that votes.
    distances = np.abs(factors[:, None] * source_points + offsets[:, None] - query_points)
    votes = distances < tolerance
    votes &= np.abs(log_scales[:, None] - log_scales) < np.log(MAX_SCALE_RATIO)
    turns = np.real(factors[:, None] * factors.conj()) / np.abs(factors[:, None] * factors)
    votes &= turns > np.cos(np.deg2rad(MAX_TURN_DEGREES))
    votes &= ((log_scales >= np.log(scales[0])) & (log_scales <= np.log(scales[1])))[:, None]
    best = votes.sum(axis=1).argmax()
    agreeing = np.flatnonzero(votes[best])
    return agreeing[keep_distinct(q.points[agreeing], s.points[agreeing], distances[best, agreeing])]


def keep_distinct(query_points: np.ndarray, source_points: np.ndarray, errors: np.ndarray) -> np.ndarray:
    """Positions of correspondences no two of which share a place in the query or in the source.

    SIFT gives a place several keypoints, of other sizes or orientations; together they are one piece of evidence.

    Args:
        query_points: (n, 2), in pixels.
        source_points: (n, 2), in pixels.
        errors: (n,); of those that share a place, the one of the smallest error is kept.
    """
    used_query, used_source = set(), set()
    kept = []
    for position in np.argsort(errors, kind="stable").tolist():
        # Cells of two pixels: keypoints of one blob in neighbouring octaves lie a pixel apart.
        query_cell = tuple((query_points[position] // 2).tolist())
        source_cell = tuple((source_points[position] // 2).tolist())
        if query_cell not in used_query and source_cell not in used_source:
            used_query.add(query_cell)
            used_source.add(source_cell)
            kept.append(position)
    return np.array(sorted(kept), dtype=np.int64)


def _to_complex(points: np.ndarray) -> np.ndarray:
    return points[:, 0].astype(np.float64) + 1j * points[:, 1]
