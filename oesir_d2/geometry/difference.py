"""Where a query differs from its host: the host is laid over it, its colours are fitted, what remains is normalised.

Both photos are at working size here. Shape shorthand: H, W of the query.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .colour_fit import fit_colours

# Weights of lightness, green-red and blue-yellow. JPEG halves the resolution of the two colours, but a pasted object of
# the background's lightness differs in them alone.
CHANNEL_WEIGHTS = np.array([0.7, 1.0, 1.0], np.float32)
# Standard deviation of the blur that averages the noise of recompression away, in pixels; less of it where the outline
# of what was found is drawn.
_BLUR = 1.2
_FINE_BLUR = 0.7
# By how many pixels the host may lie beside its true place, in which an edge makes a difference of its own.
_MISREGISTRATION = 0.5
# The noise that is assumed at least and at most, in units of CIE Lab. Below a half nobody sees anything; more than
# three is no recompression any more, but another photo.
_NOISE_RANGE = (0.5, 3.0)
# From the median of what differs to the noise.
_NOISE_FACTOR = 1.5
# A gradient above this, in units of CIE Lab a pixel, is detail; its noise spreads over a block of the compression.
_DETAIL = 1.0
_BLOCK = 15
_MIN_FOR_NOISE = 500


@dataclass(frozen=True)
class Difference:
    """How a query differs from a source that is laid over it.

    Attributes:
        deviation: (H, W) float32, difference of the colours in units of the noise that is expected there; 0 where the
            source has no pixel.
        valid: (H, W) bool, where the source has pixels.
        distance: (H, W) float32, the difference in units of CIE Lab, not normalised and hardly blurred; 0 where the
            source has no pixel.
    """

    deviation: np.ndarray
    valid: np.ndarray
    distance: np.ndarray


def warp_source(source: np.ndarray, transform: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Lay a source over the query.

    Args:
        source: (h, w, 3) uint8.
        transform: (3, 3), from the source to the query.
        size: (H, W) of the query.

    Returns:
        warped: (H, W, 3) uint8, 0 where the source has no pixel.
        valid: (H, W) bool, where it has.
    """
    height, width = size
    # A warp takes single pixels of what it shrinks; averaging before keeps fine patterns from becoming others.
    shrinking = np.sqrt(abs(np.linalg.det(transform[:2, :2])))
    if shrinking < 0.7:
        source = cv2.GaussianBlur(source, (0, 0), 0.4 / max(shrinking, 0.05))
    warped = cv2.warpPerspective(source, transform, (width, height), flags=cv2.INTER_LINEAR)
    inside = np.full(source.shape[:2], 255, np.uint8)
    valid = cv2.warpPerspective(inside, transform, (width, height), flags=cv2.INTER_LINEAR)
    # The border is mixed with the nothing outside.
    valid = cv2.copyMakeBorder(valid, 1, 1, 1, 1, cv2.BORDER_REPLICATE)
    valid = cv2.erode((valid >= 250).astype(np.uint8), np.ones((3, 3), np.uint8))[1:-1, 1:-1]
    return warped, valid.astype(bool)


def compute_difference(
    query: np.ndarray, source: np.ndarray, transform: np.ndarray, fit_where: np.ndarray | None = None
) -> Difference:
    """Lay a source over the query and compare the two.

    Args:
        query: (H, W, 3) uint8 RGB.
        source: (h, w, 3) uint8 RGB.
        transform: (3, 3), from the source to the query.
        fit_where: (H, W) bool: the colours and the noise are estimated there; everywhere if not given. Most of it
            must show the source.
    """
    warped, valid = warp_source(source, transform, query.shape[:2])
    used = valid if fit_where is None else valid & fit_where
    if np.count_nonzero(used) < 16:
        nothing = np.zeros(query.shape[:2], np.float32)
        return Difference(nothing, np.zeros(query.shape[:2], bool), nothing)
    shown, fitted = fit_colours(query, warped, used)
    residual = shown - fitted
    blurred = _length(cv2.GaussianBlur(residual, (0, 0), _BLUR))
    gradient = _gradient(cv2.GaussianBlur(fitted, (0, 0), _BLUR))
    noise = _estimate_noise(blurred, gradient, used)
    deviation = blurred / np.sqrt(noise**2 + (_MISREGISTRATION * gradient) ** 2)
    distance = _length(cv2.GaussianBlur(residual, (0, 0), _FINE_BLUR))
    deviation[~valid] = 0
    distance[~valid] = 0
    return Difference(deviation, valid, distance)


def _estimate_noise(residual: np.ndarray, gradient: np.ndarray, used: np.ndarray) -> np.ndarray:
    """The noise that is expected, (H, W) float32: recompression leaves more of it where a photo has detail.

    Args:
        residual: (H, W) float32, what differs; less than half of it may be pasted.
        gradient: (H, W) float32, of the source.
        used: (H, W) bool, where the noise is estimated.
    """
    detailed = cv2.dilate((gradient > _DETAIL).astype(np.uint8), np.ones((_BLOCK, _BLOCK), np.uint8)) > 0
    everywhere = float(np.median(residual[used]))
    values = residual[used & detailed]
    # Of a product before plain white, "everywhere" is the white.
    in_detail = max(everywhere, float(np.median(values)) if len(values) >= _MIN_FOR_NOISE else 0.0)
    level = np.where(detailed, np.float32(in_detail), np.float32(everywhere))
    return np.clip(_NOISE_FACTOR * level, *_NOISE_RANGE)


def _length(residual: np.ndarray) -> np.ndarray:
    return np.sqrt(cv2.transform(np.square(residual), CHANNEL_WEIGHTS[None]))


def _gradient(lab: np.ndarray) -> np.ndarray:
    """Length of the colour's gradient, per pixel, (H, W) float32."""
    squares = np.zeros(lab.shape[:2], np.float32)
    for dx, dy in ((1, 0), (0, 1)):
        derivative = cv2.Sobel(lab, cv2.CV_32F, dx, dy, ksize=3, scale=1 / 8)
        squares += cv2.transform(np.square(derivative), CHANNEL_WEIGHTS[None])
    return np.sqrt(squares)
