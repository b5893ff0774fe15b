"""Is a photo that lies over most of a query the photo that was changed, or another one of the same thing?

Another photo of the same monument, from nearly the same place, is off by no more in most pixels than a noisy copy would
be. But it does not vary from pixel to pixel as the query does.
"""

from __future__ import annotations

import cv2
import numpy as np

from .appearance import compare_appearance
from .findings import GeometricMatch
from .localisation import Comparison

# Compared at this size: fine detail is lost to recompression, and the windows are large.
_LONG_SIDE = 256
# Of 170 splices with objects of up to half the long side the likeness of query and host is above 0.9, but for one of
# 0.81; of 98 copies with noise, other gamma, locally equalised contrast and the like 0.88 and more. Of photos of one
# thing from two places, or in another light, seven pairs, none reached 0.79.
_ALIKE = 0.85
# Where so much of a query agrees no further look is needed: with those pairs it is 0.71 at most.
_AGREES = 0.9
# An object may cover half of its host. Then the rest must agree the more: 0.99 and above in splices, blurred or JPEG 30
# included, up to 0.98 in those pairs.
_ALIKE_BESIDE_EDITS = 0.985


def is_same_photo(query: np.ndarray, source: np.ndarray, match: GeometricMatch, comparison: Comparison) -> bool:
    """Whether a query, or what was not edited of it, shows the very pixels of a photo.

    Args:
        query: (H, W, 3) uint8 RGB.
        source: (h, w, 3) uint8 RGB.
        match: from the source to the query.
        comparison: the source laid over the query.
    """
    if comparison.explained >= _AGREES:
        return True
    everywhere = np.ones(query.shape[:2], bool)
    if _measure_likeness(query, source, match.transform, everywhere) >= _ALIKE:
        return True
    unedited = ~np.logical_or.reduce([~everywhere, *comparison.find_edits()])
    return unedited.any() and _measure_likeness(query, source, match.transform, unedited) >= _ALIKE_BESIDE_EDITS


def _measure_likeness(query: np.ndarray, source: np.ndarray, transform: np.ndarray, where: np.ndarray) -> float:
    height, width = where.shape
    factor = min(1.0, _LONG_SIDE / max(height, width))
    size = max(1, round(width * factor)), max(1, round(height * factor))
    x, y = size[0] / width, size[1] / height
    # A resize keeps the edges of pixels in place, whose centres are at whole numbers here.
    small = np.array([[x, 0, (x - 1) / 2], [0, y, (y - 1) / 2], [0, 0, 1]])
    shown = cv2.resize(query, size, interpolation=cv2.INTER_AREA)
    used = cv2.resize(where.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST) > 0
    if not used.any():
        return 0.0
    return compare_appearance(shown, source, small @ transform, used).likeness
