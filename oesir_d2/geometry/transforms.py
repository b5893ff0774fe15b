"""Homographies: applying them, describing them, and telling which of them a photo can have undergone.

A transform is a (3, 3) float64 matrix with a last element of 1, from pixels (x, y) of the source to those of the query.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PlausibleRange:
    """Which transforms are believed.

    Attributes:
        scale: smallest and largest linear scale.
        stretch: largest ratio of the scales along two directions.
        perspective: by how much the scale may change over the source's extent of correspondences, as a factor.
    """

    scale: tuple[float, float] = (0.2, 5.0)
    stretch: float = 1.7
    perspective: float = 1.6


def apply_transform(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Map points.

    Args:
        transform: (3, 3).
        points: (N, 2).

    Returns:
        (N, 2) float64; infinite or huge where a point lies on or near the horizon.
    """
    homogeneous = np.asarray(points, np.float64) @ transform[:, :2].T + transform[:, 2]
    with np.errstate(divide="ignore", invalid="ignore"):
        return homogeneous[:, :2] / homogeneous[:, 2:]


def jacobian_at(transform: np.ndarray, point: np.ndarray) -> np.ndarray:
    """(2, 2) float64: the linear map that the transform is near a point (2,) of the source."""
    x, y, w = transform @ np.array([point[0], point[1], 1.0])
    return (transform[:2, :2] - np.outer([x / w, y / w], transform[2, :2])) / w


def describe_transform(transform: np.ndarray, point: np.ndarray) -> tuple[float, float, bool]:
    """Scale, rotation in degrees, and whether it mirrors, near a point of the source.

    The rotation is clockwise as seen, in (-180, 180], after a mirroring left and right if there is one.
    """
    jacobian = jacobian_at(transform, point)
    determinant = float(np.linalg.det(jacobian))
    flipped = determinant < 0
    if flipped:
        jacobian = jacobian @ np.diag([-1.0, 1.0])
    # The rotation nearest to a matrix [[a, b], [c, d]] turns by atan2(c - b, a + d).
    angle = np.rad2deg(np.arctan2(jacobian[1, 0] - jacobian[0, 1], jacobian[0, 0] + jacobian[1, 1]))
    return float(np.sqrt(abs(determinant))), float(angle), flipped


def is_plausible(transform: np.ndarray, source_points: np.ndarray, flipped: bool, allowed: PlausibleRange) -> bool:
    """Whether a photo can have undergone a transform.

    Args:
        transform: (3, 3).
        source_points: (N, 2), N >= 1: where there is evidence for it.
        flipped: whether it has to mirror; it must not otherwise.
        allowed: what is believed.
    """
    if not np.isfinite(transform).all():
        return False
    lower, upper = source_points.min(axis=0), source_points.max(axis=0)
    corners = np.array([(x, y) for x in (lower[0], upper[0]) for y in (lower[1], upper[1])] + [(lower + upper) / 2])
    # A horizon within the evidence: some of it would lie behind the camera.
    if ((corners @ transform[2, :2] + transform[2, 2]) <= 0).any():
        return False
    jacobians = [jacobian_at(transform, corner) for corner in corners]
    determinants = np.array([np.linalg.det(jacobian) for jacobian in jacobians])
    if ((determinants < 0) != flipped).any() or (determinants == 0).any():
        return False
    scales = np.sqrt(np.abs(determinants))
    if not allowed.scale[0] <= scales[-1] <= allowed.scale[1] or np.ptp(np.log(scales)) > np.log(allowed.perspective):
        return False
    values = np.array([np.linalg.svd(jacobian, compute_uv=False) for jacobian in jacobians])
    return bool((values[:, 0] <= allowed.stretch * values[:, 1]).all())


def fit_similarity(source_points: np.ndarray, query_points: np.ndarray) -> np.ndarray:
    """The similarity without a mirror that maps points onto points with the least sum of squared errors, (3, 3).

    Args:
        source_points: (N, 2), N >= 2, not all the same.
        query_points: (N, 2).
    """
    source = source_points[:, 0].astype(np.float64) + 1j * source_points[:, 1]
    query = query_points[:, 0].astype(np.float64) + 1j * query_points[:, 1]
    centred = source - source.mean()
    factor = (centred.conj() @ (query - query.mean())) / (centred.conj() @ centred).real
    offset = query.mean() - factor * source.mean()
    return np.array(
        [[factor.real, -factor.imag, offset.real], [factor.imag, factor.real, offset.imag], [0.0, 0.0, 1.0]]
    )
