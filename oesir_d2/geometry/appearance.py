"""Does a photo that is laid over a part of the query look like it there? Structure and colours are correlated locally.

A correlation within a window does not change with gain and offset of the colours, with shading or with a gradient of
light, and pasted objects bring a rim of their old surroundings that a median over windows passes over. Shape shorthand:
H, W of the query; h, w of the window cut out of it.
"""

from __future__ import annotations

from dataclasses import replace

import cv2
import numpy as np

from .colour_fit import to_lab
from .confidence import copy_confidence, donor_confidence
from .difference import CHANNEL_WEIGHTS, warp_source
from .findings import Appearance, GeometricMatch
from .regions import tight_box

# Blur that averages the noise of recompression away and forgives a pixel or two of misregistration; standard deviation.
_BLUR = 1.5
# Windows are Gaussians whose standard deviation is this share of the part's longer side, and so many pixels at least.
_WINDOW = 1 / 12
_MIN_WINDOW = 3.0
# Windows that vary less in both photos, in units of CIE Lab, show noise alone.
_TEXTURE = 1.5
# Of products by channel: the sum, and that of lightness alone.
_SUMS = np.array([[1, 1, 1], [1, 0, 0]], np.float32)
# Pixels of the query around the part that are warped with it.
_MARGIN = 2

_Moments = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Variance of the first photo, of the second, and covariance, around each pixel: (h, w) each."""


def compare_appearance(query: np.ndarray, source: np.ndarray, transform: np.ndarray, part: np.ndarray) -> Appearance:
    """Lay a source over a part of the query and compare the two.

    Args:
        query: (H, W, 3) uint8 RGB.
        source: uint8 RGB.
        transform: (3, 3), from the source to the query.
        part: (H, W) bool, not empty.
    """
    x0, y0, x1, y1 = tight_box(part)
    rows, columns = slice(max(y0 - _MARGIN, 0), y1 + _MARGIN), slice(max(x0 - _MARGIN, 0), x1 + _MARGIN)
    shift = np.array([[1.0, 0.0, -columns.start], [0.0, 1.0, -rows.start], [0.0, 0.0, 1.0]])
    shown, cut = query[rows, columns], part[rows, columns]
    warped, valid = warp_source(source, shift @ transform, cut.shape)
    # The rim of a pasted object is mixed with what lies behind it.
    core = cv2.erode(cut.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
    core = core if core.any() else cut
    used = core & valid
    overlap = float(np.count_nonzero(used) / np.count_nonzero(core))
    first, second = (cv2.GaussianBlur(to_lab(pixels), (0, 0), _BLUR) for pixels in (shown, warped))
    window = max(_MIN_WINDOW, _WINDOW * max(x1 - x0, y1 - y0))
    by_colour, by_lightness = _measure_moments(first, second, used, window)
    correlation, textured = _correlate(by_colour, used)
    lightness, _ = _correlate(by_lightness, used)
    return Appearance(overlap, textured, correlation, lightness)


def weigh_appearance(
    query: np.ndarray, source: np.ndarray, match: GeometricMatch, part: np.ndarray, is_known: bool = False
) -> GeometricMatch:
    """A match with how its source looks over a part, and the confidence that both together give.

    Args:
        query: (H, W, 3) uint8 RGB.
        source: uint8 RGB.
        match: from the source to the query.
        part: (H, W) bool, not empty.
        is_known: whether the query shows the source in any case, and not another photo of the same thing.
    """
    appearance = compare_appearance(query, source, match.transform, part)
    # What cannot be seen does not speak for the match.
    most = 0.0 if appearance.is_too_small else 1.0
    correlation, likeness = min(appearance.correlation, most), min(appearance.likeness, most)
    if is_known:
        confidence = copy_confidence(match.inliers, correlation, appearance.textured)
    else:
        confidence = donor_confidence(match.inliers, correlation, likeness, appearance.textured)
    return replace(match, appearance=appearance, confidence=confidence)


def _measure_moments(
    first: np.ndarray, second: np.ndarray, used: np.ndarray, window: float
) -> tuple[_Moments, _Moments]:
    """Local variances and covariance of two photos (h, w, 3) in CIE Lab: of their colours, and of lightness alone."""
    weights = np.sqrt(CHANNEL_WEIGHTS) * used[..., None]
    a, b = first * weights, second * weights
    count = np.maximum(cv2.GaussianBlur(used.astype(np.float32), (0, 0), window), 1e-6)[..., None]
    mean_a, mean_b = (cv2.GaussianBlur(values, (0, 0), window) / count for values in (a, b))
    moments = [
        cv2.GaussianBlur(cv2.transform(x * y, _SUMS), (0, 0), window) / count - cv2.transform(mean_x * mean_y, _SUMS)
        for x, y, mean_x, mean_y in ((a, a, mean_a, mean_a), (b, b, mean_b, mean_b), (a, b, mean_a, mean_b))
    ]
    of_a, of_b, of_both = moments
    return (of_a[..., 0], of_b[..., 0], of_both[..., 0]), (of_a[..., 1], of_b[..., 1], of_both[..., 1])


def _correlate(moments: _Moments, used: np.ndarray) -> tuple[float, int]:
    """Median of the local correlations, and of how many pixels it is the median."""
    variance_a, variance_b, covariance = moments
    more, less = np.maximum(variance_a, variance_b), np.maximum(np.minimum(variance_a, variance_b), 0)
    seen = used & (more > _TEXTURE**2)
    if not seen.any():
        return 0.0, 0
    local = covariance[seen] / np.sqrt(more * less + 1e-6)[seen]
    # Where one of the two shows noise alone, it does not show what the other shows.
    local *= np.minimum(1, np.sqrt(less[seen]) / _TEXTURE)
    return float(np.clip(np.median(local), -1, 1)), int(np.count_nonzero(seen))
