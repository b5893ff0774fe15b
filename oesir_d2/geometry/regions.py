"""From a map of deviations to regions with clean outlines. Shape shorthand: H, W of the query, P points."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np


@dataclass(frozen=True)
class RegionOptions:
    """Which deviations make a region.

    Attributes:
        seed: a region has a deviation above this somewhere.
        grow: and above this everywhere, before its gaps are closed.
        closing: gaps up to about so wide are closed, as a share of the query's longer side.
        min_area: smaller regions are dropped, as a share of the query's pixels.
        min_seeds: share of a region's pixels that are seeds.
        outline: the outline is drawn where the difference falls below this share of the largest one nearby: a soft edge
            falls to one half in its middle, and recompression spreads it a little.
        max_regions: the largest so many are kept.
    """

    seed: float = 6.0
    grow: float = 3.0
    closing: float = 0.012
    min_area: float = 0.001
    min_seeds: float = 0.05
    outline: float = 0.37
    max_regions: int = 8


def find_regions(
    deviation: np.ndarray,
    distance: np.ndarray,
    options: RegionOptions = RegionOptions(),  # noqa: B008 - it is immutable
) -> list[np.ndarray]:
    """Find the connected regions of large deviations: two thresholds, gaps and holes closed, specks dropped.

    Args:
        deviation: (H, W) float32, see ``Difference``.
        distance: (H, W) float32, see ``Difference``.
        options: which.

    Returns:
        Masks (H, W) bool, disjoint, the largest first.
    """
    height, width = deviation.shape
    grown: np.ndarray = (deviation > options.grow).astype(np.uint8)
    # A line of a pixel's width along an edge is misregistration, no object.
    grown = cv2.morphologyEx(grown, cv2.MORPH_OPEN, _disc(1))
    seeds = (deviation > options.seed) & (grown > 0)
    grown = _keep_components(grown, seeds, 1)
    # As far as a closing reaches, the border of the photo is no gap.
    radius = max(1, round(options.closing * max(height, width) / 2))
    padded = cv2.copyMakeBorder(grown, radius, radius, radius, radius, cv2.BORDER_CONSTANT)
    closed = cv2.morphologyEx(padded, cv2.MORPH_CLOSE, _disc(radius))[radius:-radius, radius:-radius]
    filled = fill_holes(closed)
    filled = _tighten(filled, distance, options.outline)
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(filled, connectivity=4)
    kept = []
    for label in range(1, count):
        area = statistics[label, cv2.CC_STAT_AREA]
        region = labels == label
        if area >= options.min_area * height * width and np.count_nonzero(seeds & region) >= options.min_seeds * area:
            kept.append(region)
    kept.sort(key=np.count_nonzero, reverse=True)
    return kept[: options.max_regions]


def _tighten(mask: np.ndarray, distance: np.ndarray, outline: float) -> np.ndarray:
    """Move the outline inwards to where the difference falls; a mask of 0 and 1, (H, W) uint8."""
    core = cv2.erode(mask, _disc(4))
    is_large = (distance > outline * cv2.dilate(distance, _disc(3))).astype(np.uint8)
    return fill_holes(np.bitwise_or(core, mask & is_large))


def split_regions(mask: np.ndarray, min_area: float) -> list[np.ndarray]:
    """The connected pieces of a mask (H, W) bool, without those below a share of its pixels."""
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=4)
    areas = statistics[:, cv2.CC_STAT_AREA]
    return [labels == label for label in range(1, count) if areas[label] >= min_area * mask.size]


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """A mask (H, W) uint8 of 0 and 1 with all holes filled; what touches the border is no hole."""
    padded = cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    outside = padded.copy()
    cv2.floodFill(outside, None, (0, 0), 1)
    return np.bitwise_or(padded, 1 - outside)[1:-1, 1:-1]


def trace_polygons(mask: np.ndarray) -> tuple[np.ndarray, ...]:
    """The outlines of a mask.

    Args:
        mask: (H, W) bool.

    Returns:
        One (P, 2) float32 polygon of pixel centres for each connected piece, P >= 1, the largest first; without holes.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    contours = sorted(contours, key=cv2.contourArea, reverse=True)
    return tuple(cv2.approxPolyDP(contour, 0.7, True)[:, 0, :].astype(np.float32) for contour in contours)


def tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """XYXY in whole pixels around a mask (H, W) that is not empty."""
    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _keep_components(mask: np.ndarray, seeds: np.ndarray, min_seeds: int) -> np.ndarray:
    count, labels = cv2.connectedComponents(mask, connectivity=8)
    seeds_of = np.bincount(labels[seeds], minlength=count)
    kept = seeds_of >= min_seeds
    kept[0] = False
    return kept[labels].astype(np.uint8)


def _disc(radius: int) -> np.ndarray:
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
