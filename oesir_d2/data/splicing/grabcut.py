"""GrabCut (Rother et al., SIGGRAPH 2004): an object's mask from a box, and how much it looks like an object.

Shape shorthand: H, W of a photo; h, w of the reduced part of it that is segmented.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from oesir_d2.data.splicing.saliency import Box

WORK_SIDE = 256
"""Longer side in pixels of the part that is segmented; GrabCut's time grows faster than its area."""

ITERATIONS = 3

CONTEXT = 0.25
"""A box is segmented with this share of its sides around it, from which the ground's colours are learned."""

RING = 3
"""Width in pixels, at working size, of the rings inside and outside of an outline that are compared."""

WEAK_CONTRAST = 12.0
"""Distance in CIELAB below which the two sides of an outline look alike."""


@dataclass(frozen=True)
class Segmentation:
    """An object's mask, and what it says about itself.

    Attributes:
        alpha: (H, W) uint8 over the whole photo, 255 on the object, else 0.
        box_share: share of the box that the object covers.
        touch: share of the box's perimeter that the object touches.
        main_share: share of what GrabCut called object that is connected and was kept.
        compactness: 4 pi area / perimeter²; 1 for a disc, near 0 for tatters.
        solidity: share of its convex hull that the object covers.
        contrast: median distance in CIELAB between the two sides of the outline.
        weak_share: share of the outline whose two sides look alike.
    """

    alpha: np.ndarray
    box_share: float
    touch: float
    main_share: float
    compactness: float
    solidity: float
    contrast: float
    weak_share: float

    @property
    def photo_share(self) -> float:
        """Share of the photo that the object covers."""
        return np.count_nonzero(self.alpha) / self.alpha.size

    @property
    def is_plausible(self) -> bool:
        """Whether GrabCut found something in the box at all: neither specks, nor the whole box."""
        return 0.05 <= self.box_share <= 0.95 and self.touch < 0.5

    @property
    def is_object_like(self) -> bool:
        """Whether it looks like a whole object, by limits that were set by eye on 100 ImageNet photos."""
        return (
            self.is_plausible
            and self.touch < 0.05
            and self.main_share > 0.6
            and self.compactness > 0.3
            and self.solidity > 0.7
            and self.weak_share < 0.2
            and self.photo_share < 0.7  # not the photo without its frame
            and self.objectness > 8
        )

    @property
    def objectness(self) -> float:
        """How much it looks like an object, to choose among several segmentations of one photo; not negative."""
        # Beyond 60 more contrast makes an outline no clearer.
        outline = min(self.contrast, 60.0) * (1 - self.weak_share) * (1 - self.touch)
        return outline * math.sqrt(self.compactness * self.photo_share)


def segment_box(pixels: np.ndarray, box: Box) -> Segmentation | None:
    """Find the object in a box.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        box: XYXY in pixels of the photo, around the whole object; what reaches out of the photo does not count.

    Returns:
        The segmentation, the same for the same arguments; None if the box holds nothing but ground, or is smaller
        than 4 pixels.
    """
    height, width = pixels.shape[:2]
    box = (max(0, box[0]), max(0, box[1]), min(width, box[2]), min(height, box[3]))
    if box[2] - box[0] < 4 or box[3] - box[1] < 4:
        return None
    left, top, right, bottom = _add_context(box, width, height)
    part = pixels[top:bottom, left:right]
    shrink = min(1.0, WORK_SIDE / max(part.shape[:2]))
    size = (max(8, round(part.shape[1] * shrink)), max(8, round(part.shape[0] * shrink)))
    reduced = cv2.resize(part, size, interpolation=cv2.INTER_AREA)
    scale = np.array([size[0] / part.shape[1], size[1] / part.shape[0]] * 2)
    reduced_box = np.rint((np.array(box) - [left, top, left, top]) * scale).astype(int)
    # GrabCut learns the ground from outside of the box, so there must be an outside.
    reduced_box[:2] = np.maximum(reduced_box[:2], 2)
    reduced_box[2:] = np.minimum(reduced_box[2:], np.array(size) - 2)
    raw_mask = _run_grabcut(reduced, reduced_box)
    mask, main_share = _keep_largest_part(raw_mask)
    # Smoothed before it is enlarged, so that the working pixels do not show as stairs.
    smooth = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 1.0)
    enlarged = cv2.resize(smooth, (part.shape[1], part.shape[0]), interpolation=cv2.INTER_CUBIC)
    alpha = np.zeros((height, width), dtype=np.uint8)
    alpha[top:bottom, left:right][enlarged > 0.5] = 255
    if not alpha.any():
        return None
    x0, y0, x1, y1 = reduced_box
    compactness, solidity = _measure_shape(mask)
    contrast, weak_share = _measure_outline(reduced, mask)
    sides = (mask[y0, x0:x1], mask[y1 - 1, x0:x1], mask[y0:y1, x0], mask[y0:y1, x1 - 1])
    return Segmentation(
        alpha=alpha,
        box_share=float(mask.sum() / ((x1 - x0) * (y1 - y0))),
        touch=float(np.concatenate(sides).mean()),
        main_share=main_share,
        compactness=compactness,
        solidity=solidity,
        contrast=contrast,
        weak_share=weak_share,
    )


def _add_context(box: Box, width: int, height: int) -> Box:
    """The box with the ground around it that the photo has."""
    x0, y0, x1, y1 = box
    margin_x, margin_y = round(CONTEXT * (x1 - x0)), round(CONTEXT * (y1 - y0))
    return max(0, x0 - margin_x), max(0, y0 - margin_y), min(width, x1 + margin_x), min(height, y1 + margin_y)


def _run_grabcut(pixels: np.ndarray, box: np.ndarray) -> np.ndarray:
    """GrabCut's mask, (h, w) uint8, 0 or 1."""
    x0, y0, x1, y1 = (int(v) for v in box)
    labels = np.zeros(pixels.shape[:2], dtype=np.uint8)
    # GrabCut starts its colour models by k-means, which draws from OpenCV's global generator.
    cv2.setRNGSeed(0)
    ground_model, object_model = np.zeros((1, 65)), np.zeros((1, 65))
    rect = (x0, y0, x1 - x0, y1 - y0)
    cv2.grabCut(pixels, labels, rect, ground_model, object_model, ITERATIONS, cv2.GC_INIT_WITH_RECT)
    return ((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)).astype(np.uint8)


def _keep_largest_part(raw_mask: np.ndarray) -> tuple[np.ndarray, float]:
    """The largest connected part without its threads and holes, (h, w) uint8, and its share of the raw mask."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (5, 5))
    opened = cv2.morphologyEx(raw_mask, cv2.MORPH_OPEN, disc)
    num_parts, parts, statistics, _ = cv2.connectedComponentsWithStats(opened)
    if num_parts == 1:
        return np.zeros_like(raw_mask), 0.0
    largest = 1 + int(np.argmax(statistics[1:, cv2.CC_STAT_AREA]))
    part = (parts == largest).astype(np.uint8)
    outlines, _ = cv2.findContours(part, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    filled = cv2.drawContours(np.zeros_like(part), outlines, -1, 1, cv2.FILLED)
    return filled, float(part.sum() / raw_mask.sum())


def _measure_shape(mask: np.ndarray) -> tuple[float, float]:
    """Compactness and solidity of a mask of one connected part."""
    outlines, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    area = float(mask.sum())
    perimeter = cv2.arcLength(outlines[0], closed=True)
    # Outlines run through the centres of pixels, so they enclose less than the pixels' area.
    hull_area = max(cv2.contourArea(cv2.convexHull(outlines[0])), area)
    return 4 * np.pi * area / max(perimeter, 1.0) ** 2, area / hull_area


def _measure_outline(pixels: np.ndarray, mask: np.ndarray) -> tuple[float, float]:
    """Contrast and share of weak places of a mask's outline."""
    lab = cv2.cvtColor(cv2.GaussianBlur(pixels, (0, 0), 1), cv2.COLOR_RGB2LAB).astype(np.float32)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * RING + 1, 2 * RING + 1))
    inner = mask - cv2.erode(mask, disc, borderType=cv2.BORDER_CONSTANT, borderValue=0)
    outer = cv2.dilate(mask, disc) - mask
    distance = np.linalg.norm(_average_nearby(lab, inner) - _average_nearby(lab, outer), axis=2)
    distances = distance[(inner > 0)]
    return float(np.median(distances)), float(np.mean(distances < WEAK_CONTRAST))


def _average_nearby(colours: np.ndarray, ring: np.ndarray) -> np.ndarray:
    """(h, w, 3) float32: at each pixel the mean colour of the ring's pixels nearby."""
    weights = ring.astype(np.float32)
    total = cv2.GaussianBlur(colours * weights[..., None], (0, 0), 5)
    return total / np.maximum(cv2.GaussianBlur(weights, (0, 0), 5), 1e-4)[..., None]
