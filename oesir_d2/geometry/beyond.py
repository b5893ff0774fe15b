"""What a query shows beyond its host: a canvas that was extended, a photo set beside it.

Where the host has no pixel nothing can be compared, but nothing of it can be shown there either. A plain margin, such
as the bars of a film, tells nothing. Shape shorthand: H, W of the query.
"""

from __future__ import annotations

import cv2
import numpy as np

from .colour_fit import to_lab
from .regions import RegionOptions, split_regions

# What is narrower is a transform that fits badly at the border, as a share of the query's longer side.
_MIN_WIDTH = 0.02
# So far from its outline a margin shows the blocks of the compression, in pixels.
_SEAM = 8
_BLUR = 1.2
# A margin is plain if hardly a pixel of it is further from the colour in its middle, in units of CIE Lab.
_PLAIN_RANGE = 6.0
_PLAIN_SHARE = 0.995


def find_beyond(query: np.ndarray, valid: np.ndarray, options: RegionOptions) -> np.ndarray:
    """Where a query shows something that its host does not reach.

    Args:
        query: (H, W, 3) uint8 RGB.
        valid: (H, W) bool, where the host has pixels.
        options: ``min_area`` is the smallest piece.

    Returns:
        (H, W) bool: connected pieces, without slivers and plain margins.
    """
    missing: np.ndarray = (~valid).astype(np.uint8)
    radius = max(4, round(_MIN_WIDTH * max(valid.shape)))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1,) * 2)
    wide = cv2.erode(missing, disc)
    if not wide.any():
        return np.zeros(valid.shape, bool)
    missing &= cv2.dilate(wide, cv2.dilate(disc, np.ones((3, 3), np.uint8)))
    colours = to_lab(cv2.GaussianBlur(query, (0, 0), _BLUR))
    beyond = np.zeros(valid.shape, bool)
    for piece in split_regions(missing > 0, options.min_area):
        if not _is_plain(colours, piece):
            beyond |= piece
    return beyond


def _is_plain(colours: np.ndarray, piece: np.ndarray) -> bool:
    # What lies outside of the photo is no outline of the piece.
    inner = cv2.erode(piece.astype(np.uint8), np.ones((2 * _SEAM + 1,) * 2, np.uint8)) > 0
    shown = colours[inner if inner.any() else piece]
    distances = np.linalg.norm(shown - np.median(shown, axis=0), axis=1)
    return bool((distances <= _PLAIN_RANGE).mean() >= _PLAIN_SHARE)
