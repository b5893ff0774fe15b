"""Random regions of plain photos: what stands in for objects where nobody has outlined any.

A region has a smooth closed outline, which a few waves of random phase draw around an ellipse.
"""

from __future__ import annotations

import math

import cv2
import numpy as np

SIDES = (0.2, 0.8)
"""Smallest and largest longer side of a region, as shares of the photo's; sides are log-uniform."""

MAX_ASPECT = 2.0
"""Largest ratio of a region's sides."""

MIN_SIDE = 24
"""Neither side of a region is shorter than this, in pixels, in any photo that has so many."""

WAVES = 4
"""Waves along the outline; the k-th has k periods and an amplitude that falls with k."""

AMPLITUDE = 0.22
"""Standard deviation of the first wave, relative to the ellipse's radius."""

RADII = (0.35, 1.5)
"""What the outline's distance from the centre is cut to, relative to the ellipse's radius."""

OUTLINE_POINTS = 48


def draw_blob(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a region of a photo.

    Args:
        height, width: of the photo, in pixels.
        rng: the only source of randomness.

    Returns:
        (H, W) uint8, 255 in the region, else 0; the region lies in the photo as a whole and is not empty.
    """
    side = math.exp(rng.uniform(math.log(SIDES[0]), math.log(SIDES[1]))) * max(height, width)
    # One of the two sides is the longer one.
    shorter = side / math.exp(rng.uniform(0, math.log(MAX_ASPECT)))
    blob_width, blob_height = (side, shorter) if rng.random() < 0.5 else (shorter, side)
    blob_width = min(width, max(MIN_SIDE, round(blob_width)))
    blob_height = min(height, max(MIN_SIDE, round(blob_height)))
    outline = _draw_outline(rng)
    # Stretched to the box, whose pixels' centres are the whole numbers.
    outline = (outline - outline.min(axis=0)) / np.ptp(outline, axis=0) * (blob_width - 1, blob_height - 1)
    x = rng.integers(0, width - blob_width, endpoint=True)
    y = rng.integers(0, height - blob_height, endpoint=True)
    mask = np.zeros((height, width), dtype=np.uint8)
    cv2.fillPoly(mask, [np.rint(outline + (x, y)).astype(np.int32)], 255)
    return mask


def _draw_outline(rng: np.random.Generator) -> np.ndarray:
    """(P, 2) points x, y around the origin."""
    angles = np.linspace(0, 2 * math.pi, OUTLINE_POINTS, endpoint=False)
    radii = np.ones(OUTLINE_POINTS)
    for k in range(1, WAVES + 1):
        radii += rng.normal(0, AMPLITUDE / k) * np.cos(k * angles + rng.uniform(0, 2 * math.pi))
    radii = np.clip(radii, *RADII)
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
