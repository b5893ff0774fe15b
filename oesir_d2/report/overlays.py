"""Pictures of evidence: a source laid over the query, correspondences between two photos, coloured parts.

Photos are (H, W, 3) uint8 RGB arrays at display size; points and polygons come in pixels of the original photos and are
scaled along.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from PIL import Image, ImageDraw

from oesir_d2.data.images import DecodedImage
from oesir_d2.report.contact_sheet import PAPER
from oesir_d2.report.drawings import DISPLAY_LONG_SIDE, Color, compute_display_size, draw_display_photo

MAX_LINES = 60
GAP = 16
MIST: Color = (128, 128, 128)


def make_display_scale(image: DecodedImage, long_side: int = DISPLAY_LONG_SIDE) -> tuple[tuple[int, int], np.ndarray]:
    """Size (width, height) at which a photo is shown, and the (3, 3) map of its original pixels to shown ones."""
    width, height = compute_display_size(image.pixels.shape[1], image.pixels.shape[0], long_side)
    scale_x, scale_y = width / image.width, height / image.height
    # Pixel centres lie at whole numbers: half a pixel is half a pixel of another size.
    return (width, height), np.array([[scale_x, 0, (scale_x - 1) / 2], [0, scale_y, (scale_y - 1) / 2], [0, 0, 1.0]])


def map_points(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Points (N, 2) moved by a homography (3, 3)."""
    if not len(points):
        return np.zeros((0, 2))
    homogeneous = np.column_stack([np.asarray(points, dtype=np.float64), np.ones(len(points))]) @ transform.T
    return homogeneous[:, :2] / homogeneous[:, 2:]


def draw_warped(source: DecodedImage, query: DecodedImage, transform: np.ndarray) -> np.ndarray:
    """The source as it would lie in the query; where it has nothing to show, the query as through a mist.

    Args:
        transform: (3, 3), pixels of the original source to pixels of the original query.

    Returns:
        (H, W, 3) uint8 RGB, of the query's display size.
    """
    size, query_scale = make_display_scale(query)
    _, source_scale = make_display_scale(source)
    shown = draw_display_photo(source.pixels)
    matrix = query_scale @ transform @ np.linalg.inv(source_scale)
    mist = cv2.addWeighted(
        draw_display_photo(query.pixels), 0.3, np.full((size[1], size[0], 3), MIST, np.uint8), 0.7, 0
    )
    return cv2.warpPerspective(shown, matrix, size, mist, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_TRANSPARENT)


def draw_correspondences(
    query: DecodedImage, source: DecodedImage, query_points: np.ndarray, source_points: np.ndarray, color: Color
) -> np.ndarray:
    """Query and source beside each other, lines between points that are the same; of many, some spread evenly.

    Args:
        query_points, source_points: (N, 2), row by row the same point.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    left, right = draw_display_photo(query.pixels), draw_display_photo(source.pixels)
    height = max(left.shape[0], right.shape[0])
    offset = left.shape[1] + GAP
    sheet = np.full((height, offset + right.shape[1], 3), PAPER, np.uint8)
    sheet[: left.shape[0], : left.shape[1]] = left
    sheet[: right.shape[0], offset:] = right
    chosen = choose_spread(np.asarray(query_points), MAX_LINES)
    starts = map_points(make_display_scale(query)[1], np.asarray(query_points)[chosen])
    ends = map_points(make_display_scale(source)[1], np.asarray(source_points)[chosen]) + (offset, 0)
    # Drawn at twice the size and shrunken: lines at small angles would be stairs.
    image = Image.fromarray(sheet).resize((2 * sheet.shape[1], 2 * sheet.shape[0]))
    draw = ImageDraw.Draw(image)
    for start, end in zip(starts.tolist(), ends.tolist()):
        draw.line([(2 * start[0], 2 * start[1]), (2 * end[0], 2 * end[1])], fill=color, width=3)
        for x, y in (start, end):
            draw.ellipse((2 * x - 6, 2 * y - 6, 2 * x + 6, 2 * y + 6), fill=color, outline=(0, 0, 0), width=2)
    return np.array(image.resize((sheet.shape[1], sheet.shape[0]), Image.Resampling.BOX))


def choose_spread(points: np.ndarray, count: int) -> np.ndarray:
    """Indices of at most ``count`` of the points (N, 2): each next one is the farthest from those chosen."""
    if len(points) <= count:
        return np.arange(len(points))
    chosen = [0]
    distances = np.linalg.norm(points - points[0], axis=1)
    while len(chosen) < count:
        chosen.append(int(distances.argmax()))
        distances = np.minimum(distances, np.linalg.norm(points - points[chosen[-1]], axis=1))
    return np.array(chosen)


def format_outline(polygon: np.ndarray) -> str:
    """A polygon (M, 2) as the points of an SVG element."""
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in np.asarray(polygon).tolist())


def find_label_place(polygons: Sequence[np.ndarray]) -> tuple[float, float]:
    """Where a number may stand for polygons (M, 2): the point of the largest that is farthest from its border."""
    largest = max(polygons, key=lambda polygon: abs(cv2.contourArea(np.asarray(polygon, dtype=np.float32))))
    origin = np.floor(np.min(largest, axis=0)) - 1
    width, height = (np.ceil(np.max(largest, axis=0) - origin) + 2).astype(int).tolist()
    inside = np.zeros((height, width), np.uint8)
    cv2.fillPoly(inside, [np.round(np.asarray(largest) - origin).astype(np.int32)], 1)
    _, _, _, place = cv2.minMaxLoc(cv2.distanceTransform(inside, cv2.DIST_L2, 3))
    return float(place[0] + origin[0]), float(place[1] + origin[1])
