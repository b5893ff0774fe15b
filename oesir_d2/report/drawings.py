"""Boxes with labels on photos, in colours that readers with colour-vision deficiencies can tell apart.

Photos are (H, W, 3) uint8 RGB arrays. Boxes are XYXY in pixels of the photo that they are drawn on: x0 and y0 lie
inside the box, x1 and y1 just outside it. No function changes its input.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

Color = tuple[int, int, int]
"""Red, green and blue, each in 0 to 255."""

Box = Sequence[float]
"""x0, y0, x1, y1."""

DISPLAY_LONG_SIDE = 640

# Okabe and Ito, "Color Universal Design", 2008: their eight colours without black, which reads as shadow on a photo.
# The order keeps the first colours, which are used most, far apart.
REGION_COLORS: tuple[Color, ...] = (
    (230, 159, 0),  # orange
    (86, 180, 233),  # sky blue
    (213, 94, 0),  # vermillion
    (240, 228, 66),  # yellow
    (0, 158, 115),  # bluish green
    (204, 121, 167),  # reddish purple
    (0, 114, 178),  # blue
)
BLACK: Color = (0, 0, 0)
WHITE: Color = (255, 255, 255)


@dataclass(frozen=True)
class LabelledBox:
    """A box to draw.

    Attributes:
        box: XYXY in pixels of the photo. It may reach out of the photo or have no area.
        color: colour of the border and of the label's ground.
        label: short text at one of the box's corners; empty for none.

    Raises:
        ValueError: if the box is not four finite numbers.
    """

    box: Box
    color: Color
    label: str = ""

    def __post_init__(self) -> None:
        if len(self.box) != 4 or not all(math.isfinite(value) for value in self.box):
            raise ValueError(f"box {list(self.box)} is not four finite numbers x0, y0, x1, y1")


def get_region_color(index: int) -> Color:
    """The colour of the region of this number, from 0; colours come again after the last one."""
    return REGION_COLORS[index % len(REGION_COLORS)]


def get_text_color(ground: Color) -> Color:
    """Black or white, whichever contrasts more with ``ground`` (WCAG 2.1 relative luminance)."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in ground)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return BLACK if (luminance + 0.05) ** 2 > 0.05 * 1.05 else WHITE


def compute_display_size(width: int, height: int, long_side: int = DISPLAY_LONG_SIDE) -> tuple[int, int]:
    """Width and height at which a photo is shown: its longer side at most ``long_side``, never enlarged, at least 1."""
    if long_side < 1:
        raise ValueError(f"display size {long_side} is not allowed, the longer side has at least 1 pixel")
    scale = min(1.0, long_side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def draw_display_photo(
    pixels: np.ndarray, boxes: Sequence[LabelledBox] = (), long_side: int = DISPLAY_LONG_SIDE
) -> np.ndarray:
    """Shrink a photo to its display size and draw boxes on it.

    Lines and labels are drawn after the shrinking, so that they are equally legible on photos of any size.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        boxes: in pixels of ``pixels``; they are scaled along with the photo.
        long_side: longer side of the display size in pixels; a smaller photo keeps its size.

    Returns:
        (H', W', 3) uint8 RGB, a new array.
    """
    _check_photo(pixels)
    height, width = pixels.shape[:2]
    size = compute_display_size(width, height, long_side)
    # Averaging over the covered area avoids the moiré that plain bilinear sampling gives on strong shrinking.
    shown = pixels if size == (width, height) else cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    # A very long and thin photo cannot keep its proportions (no side goes below 1), so each axis has its own scale.
    scale_x, scale_y = size[0] / width, size[1] / height
    scaled = [
        LabelledBox((b.box[0] * scale_x, b.box[1] * scale_y, b.box[2] * scale_x, b.box[3] * scale_y), b.color, b.label)
        for b in boxes
    ]
    return draw_boxes(shown, scaled)


def draw_boxes(pixels: np.ndarray, boxes: Sequence[LabelledBox]) -> np.ndarray:
    """Draw boxes with their labels on a photo.

    The line width and the label size follow the photo's longer side. A box that reaches out of the photo is cut at its
    border, one that lies wholly outside is left out, and one without area is drawn as a spot. Borders are drawn inside
    their box, first box first; labels come on top of all borders and avoid each other where they can.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        boxes: in pixels of ``pixels``.

    Returns:
        (H, W, 3) uint8 RGB, a new array.
    """
    _check_photo(pixels)
    height, width = pixels.shape[:2]
    line_width = compute_line_width(width, height)
    visible = [(b, corners) for b in boxes if (corners := _clip_box(b.box, width, height, line_width)) is not None]
    drawn = pixels.copy()
    for box, corners in visible:
        # A thin dark casing on the inner side keeps the line visible where the photo has the line's own colour.
        _fill_border(drawn, corners, line_width + max(1, line_width // 4), BLACK)
        _fill_border(drawn, corners, line_width, box.color)
    image = Image.fromarray(drawn)
    draw = ImageDraw.Draw(image)
    taken: list[tuple[int, int, int, int]] = []
    for box, corners in visible:
        if box.label:
            taken.append(_draw_label(draw, box, corners, (width, height), taken))
    return np.array(image)


def crop_box(pixels: np.ndarray, box: Box) -> np.ndarray:
    """The part of a photo within a box, at least one pixel a side and never beyond the photo.

    Args:
        pixels: (H, W, 3) uint8 RGB.
        box: XYXY in pixels of ``pixels``; of a box that lies wholly outside, the nearest pixels are taken.

    Returns:
        (h, w, 3) uint8 RGB, a view of ``pixels``.
    """
    _check_photo(pixels)
    height, width = pixels.shape[:2]
    x0, x1 = (min(max(value, 0), width) for value in (box[0], box[2]))
    y0, y1 = (min(max(value, 0), height) for value in (box[1], box[3]))
    left, top = min(math.floor(x0), width - 1), min(math.floor(y0), height - 1)
    return pixels[top : max(top + 1, math.ceil(y1)), left : max(left + 1, math.ceil(x1))]


def compute_line_width(width: int, height: int) -> int:
    """Width of a box border in pixels: 1/120 of the photo's longer side, at most 1/12 of the shorter, at least 1."""
    return max(1, round(min(max(width, height) / 120, min(width, height) / 12)))


def _check_photo(pixels: np.ndarray) -> None:
    if pixels.ndim != 3 or pixels.shape[2] != 3 or pixels.dtype != np.uint8 or pixels.size == 0:
        raise ValueError(f"a photo of shape {pixels.shape} and type {pixels.dtype} is not (H, W, 3) uint8 RGB")


def _clip_box(box: Box, width: int, height: int, least: int) -> tuple[int, int, int, int] | None:
    """The box's part within the photo in whole pixels (left, top, right, bottom); None if it has none.

    A part of fewer than ``least`` pixels a side is widened to them, to the right and downwards.
    """
    left, right = sorted((box[0], box[2]))
    top, bottom = sorted((box[1], box[3]))
    # x1 and y1 lie outside: a box that ends at 0 shows nothing, unless it has no area and lies on the border itself.
    if left >= width or top >= height or left < 0 >= right or top < 0 >= bottom:
        return None
    x0, y0 = max(0, math.floor(left)), max(0, math.floor(top))
    x1, y1 = max(x0 + least, math.ceil(right)), max(y0 + least, math.ceil(bottom))
    return x0, y0, min(width, x1), min(height, y1)


def _fill_border(pixels: np.ndarray, corners: tuple[int, int, int, int], line_width: int, color: Color) -> None:
    """Colour the outermost ``line_width`` pixels within a box, in place."""
    x0, y0, x1, y1 = corners
    pixels[y0 : min(y0 + line_width, y1), x0:x1] = color
    pixels[max(y1 - line_width, y0) : y1, x0:x1] = color
    pixels[y0:y1, x0 : min(x0 + line_width, x1)] = color
    pixels[y0:y1, max(x1 - line_width, x0) : x1] = color


@functools.lru_cache(maxsize=32)
def get_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans Bold of this height in pixels; it ships with matplotlib and has most alphabets."""
    # Only its files are wanted: importing it is slow, and warns where it has no folder to write to.
    package = Path(find_spec("matplotlib").origin).parent
    return ImageFont.truetype(package / "mpl-data" / "fonts" / "ttf" / "DejaVuSans-Bold.ttf", size)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    box: LabelledBox,
    corners: tuple[int, int, int, int],
    photo_size: tuple[int, int],
    taken: Sequence[tuple[int, int, int, int]],
) -> tuple[int, int, int, int]:
    """Draw a label where it covers no other one, and return its place (left, top, right, bottom)."""
    font = get_font(max(8, round(min(max(photo_size) / 20, min(photo_size) / 4))))
    padding = max(1, round(font.size / 5))
    text_left, text_top, text_right, text_bottom = draw.textbbox((0, 0), box.label, font=font)
    label_width = math.ceil(text_right - text_left) + 2 * padding
    label_height = math.ceil(text_bottom - text_top) + 2 * padding
    x0, y0, x1, y1 = corners
    right, bottom = x1 - label_width, y1 - label_height
    # Above the box a label hides nothing of it; the corners inside follow for boxes at the photo's upper edge.
    candidates = [(x0, y0 - label_height), (x0, y0), (right, y0), (x0, bottom), (right, bottom)]
    places = [
        (left, top, left + label_width, top + label_height)
        for left, top in candidates
        if left >= 0 and top >= 0 and left + label_width <= photo_size[0] and top + label_height <= photo_size[1]
    ]
    # On a photo too small for the label, its beginning is what can be shown.
    fallback = (x0, y0, x0 + label_width, y0 + label_height)
    free = (place for place in places if not any(_overlap(place, other) for other in taken))
    place = next(free, places[0] if places else fallback)
    draw.rectangle((place[0], place[1], place[2] - 1, place[3] - 1), fill=box.color)
    origin = (place[0] + padding - text_left, place[1] + padding - text_top)
    draw.text(origin, box.label, font=font, fill=get_text_color(box.color))
    return place


def _overlap(a: tuple[int, int, int, int], b: tuple[int, int, int, int]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
