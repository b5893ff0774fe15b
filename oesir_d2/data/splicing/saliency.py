"""Where in a photo an object may lie: boxes for GrabCut, found without any training.

Each proposal is a guess of another kind: that objects lie in the middle, that they have other colours than the photo's
border, that they break the regularity of the photo's spectrum. GrabCut's result shows which guess was right.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

Box = tuple[int, int, int, int]
"""XYXY in pixels of a photo."""

WORK_SIDE = 256
"""Longer side in pixels of the reduced photo that saliency is computed on."""

CENTRE_INSET = 0.08
"""The centred box leaves out this share of the photo's width and height at each side."""

MARGIN = 0.08
"""A salient region's box is enlarged by this share of its width and height at each side."""

MIN_AREA = 0.06
"""Share of the photo that a box must cover."""

MAX_OVERLAP = 0.8
"""A box of a higher intersection over union with an earlier one is no new guess."""


def propose_boxes(pixels: np.ndarray) -> list[Box]:
    """Guess where an object may lie.

    Args:
        pixels: (H, W, 3) uint8 RGB.

    Returns:
        One to three different boxes, XYXY in pixels of the photo; the same for the same photo.
    """
    height, width = pixels.shape[:2]
    inset_x, inset_y = int(CENTRE_INSET * width), int(CENTRE_INSET * height)
    boxes = [(inset_x, inset_y, width - inset_x, height - inset_y)]
    shrink = min(1.0, WORK_SIDE / max(height, width))
    size = (max(8, round(width * shrink)), max(8, round(height * shrink)))
    reduced = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    for saliency in (compute_border_contrast(reduced), compute_spectral_residual(reduced)):
        box = _find_salient_box(saliency, width, height)
        if _area(box) >= MIN_AREA * height * width and all(_compute_iou(box, other) < MAX_OVERLAP for other in boxes):
            boxes.append(box)
    return boxes


def compute_border_contrast(pixels: np.ndarray) -> np.ndarray:
    """How much each pixel's colour differs from the colours along the photo's border.

    Args:
        pixels: (H, W, 3) uint8 RGB, at least 8 pixels a side.

    Returns:
        (H, W) float32, distance in CIELAB to the nearest of three typical border colours.
    """
    lab = cv2.cvtColor(cv2.GaussianBlur(pixels, (0, 0), 2), cv2.COLOR_RGB2LAB).astype(np.float32)
    rim = max(2, round(0.04 * max(lab.shape[:2])))
    is_border = np.ones(lab.shape[:2], dtype=bool)
    is_border[rim:-rim, rim:-rim] = False
    # k-means draws its starting points from OpenCV's global generator.
    cv2.setRNGSeed(0)
    stop = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 20, 0.5)
    _, _, border_colours = cv2.kmeans(lab[is_border], 3, None, stop, 2, cv2.KMEANS_PP_CENTERS)
    return np.min([np.linalg.norm(lab - colour, axis=2) for colour in border_colours], axis=0)


def compute_spectral_residual(pixels: np.ndarray) -> np.ndarray:
    """Saliency as the spectral residual (Hou and Zhang, CVPR 2007): what the mean spectrum of photos does not explain.

    Args:
        pixels: (H, W, 3) uint8 RGB.

    Returns:
        (H, W) float32, not negative.
    """
    # The method's own scale: at 64 pixels a side objects stand out, and their texture does not.
    grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (64, 64), interpolation=cv2.INTER_AREA)
    spectrum = np.fft.fft2(grey.astype(np.float32))
    log_amplitude = np.log(np.abs(spectrum) + 1e-6)
    residual = log_amplitude - cv2.blur(log_amplitude, (3, 3))
    saliency = np.abs(np.fft.ifft2(np.exp(residual + 1j * np.angle(spectrum)))) ** 2
    saliency = cv2.GaussianBlur(saliency.astype(np.float32), (0, 0), 2.5)
    return cv2.resize(saliency, (pixels.shape[1], pixels.shape[0]), interpolation=cv2.INTER_LINEAR)


def _find_salient_box(saliency: np.ndarray, width: int, height: int) -> Box:
    """The box, in pixels of a photo of the given size, of the connected region with the most saliency."""
    lowest, highest = float(saliency.min()), float(saliency.max())
    levels = ((saliency - lowest) * (255 / max(highest - lowest, 1e-12))).astype(np.uint8)
    _, salient = cv2.threshold(levels, 0, 255, cv2.THRESH_OTSU)
    salient = cv2.morphologyEx(salient, cv2.MORPH_CLOSE, np.ones((9, 9), dtype=np.uint8))
    num_regions, regions, statistics, _ = cv2.connectedComponentsWithStats(salient)
    if num_regions == 1:  # only the ground: the photo is of one colour
        return 0, 0, 0, 0
    strongest = 1 + int(np.argmax(np.bincount(regions.ravel(), weights=saliency.ravel())[1:]))
    left, top, box_width, box_height = (float(v) for v in statistics[strongest, :4])
    scale_x, scale_y = width / saliency.shape[1], height / saliency.shape[0]
    return (
        max(0, round((left - MARGIN * box_width) * scale_x)),
        max(0, round((top - MARGIN * box_height) * scale_y)),
        min(width, round((left + (1 + MARGIN) * box_width) * scale_x)),
        min(height, round((top + (1 + MARGIN) * box_height) * scale_y)),
    )


def _area(box: Sequence[int]) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def _compute_iou(box: Box, other: Box) -> float:
    overlap = _area((max(box[0], other[0]), max(box[1], other[1]), min(box[2], other[2]), min(box[3], other[3])))
    return overlap / (_area(box) + _area(other) - overlap)
