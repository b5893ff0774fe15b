"""Keypoints whose descriptors belong together. Shape shorthand: Q, S keypoints of query and source, M pairs."""

from __future__ import annotations

import numpy as np


def match_descriptors(query: np.ndarray, source: np.ndarray, max_ratio: float) -> np.ndarray:
    """Mutual nearest neighbours that are clearly nearer than the second nearest.

    Args:
        query: (Q, 128) float32, L2-normalised.
        source: (S, 128) float32, L2-normalised.
        max_ratio: largest distance to the nearest as a share of that to the second nearest, in (0, 1] (Lowe,
            "Distinctive image features from scale-invariant keypoints", IJCV 2004).

    Returns:
        (M, 2) int64: positions in the query and in the source.
    """
    if len(query) == 0 or len(source) < 2:
        return np.zeros((0, 2), np.int64)
    cosines = query @ source.T
    rows = np.arange(len(query))
    nearest = cosines.argmax(axis=1)
    first = cosines[rows, nearest]
    cosines[rows, nearest] = -np.inf
    second = cosines.max(axis=1)
    # Squared distances of unit vectors are 2 - 2 cos.
    clear = np.flatnonzero(1 - first < max_ratio**2 * (1 - second))
    cosines[rows, nearest] = first
    # Few are left, so only their columns are gone through.
    is_mutual = cosines[:, nearest[clear]].argmax(axis=0) == clear
    kept = clear[is_mutual]
    return np.stack([kept, nearest[kept]], axis=1)
