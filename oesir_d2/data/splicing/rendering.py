"""Rendering of a cut-out as it is pasted: mirrored, scaled, rotated, tinted and soft at its edge.

Shape shorthand: h, w of the cut-out; h', w' of the rendered object.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from oesir_d2.data.splicing.cutouts import OPAQUE, CutOut, find_tight_box

SCALE_TRIES = 6
"""How often the scale is corrected: softening takes away from an object's thin ends."""

MAX_MISS = 2.0
"""By how many pixels the longer side may be missed, where a thin end comes and goes by a hair's breadth of scale."""


@dataclass(frozen=True)
class Look:
    """How an object is changed before it is pasted.

    Attributes:
        long_side: longer side of the pasted object's tight box, in pixels.
        angle: rotation in degrees, counter-clockwise, after the mirroring.
        flip: whether it is mirrored left and right.
        gains: factors of red, green and blue.
        softness: width of the edge as the sigma of a Gaussian, in pixels; 0 makes a hard edge.
    """

    long_side: float
    angle: float = 0.0
    flip: bool = False
    gains: tuple[float, float, float] = (1.0, 1.0, 1.0)
    softness: float = 0.0


@dataclass(frozen=True)
class RenderedObject:
    """An object ready to be blended into a host.

    Attributes:
        pixels: (h', w', 3) float32 RGB in [0, 255], not premultiplied.
        alpha: (h', w') float32 in [0, 1], how much of the object each pixel shows.
        box: XYXY in pixels of this rendering, tight around the mask. Outside of it is nothing but soft edge.
    """

    pixels: np.ndarray
    alpha: np.ndarray
    box: tuple[int, int, int, int]

    @property
    def mask(self) -> np.ndarray:
        """(h', w') bool, where the object is more visible than the host."""
        return self.alpha > 0.5

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the box, in pixels."""
        x0, y0, x1, y1 = self.box
        return x1 - x0, y1 - y0


def render_object(cutout: CutOut, look: Look, max_size: tuple[int, int]) -> RenderedObject | None:
    """Change an object's look.

    Args:
        cutout: the object.
        look: what to change. The longer side is met within two pixels, mostly within one.
        max_size: width and height in pixels that the tight box must fit into; a larger object is made smaller.

    Returns:
        The object, or None if it is so thin that nothing remains of it or its size cannot be met.
    """
    premultiplied = _premultiply(cutout.pixels, look.flip)
    scale = look.long_side / max(_measure_rotated(premultiplied[..., 3], look.angle))
    best, best_miss = None, math.inf
    for _ in range(SCALE_TRIES):
        rendered = _render(premultiplied, scale, look)
        if rendered is None:
            break
        width, height = rendered.size
        factor = min(look.long_side / max(width, height), max_size[0] / width, max_size[1] / height)
        miss = abs(factor - 1) * max(width, height)
        if miss < best_miss and width <= max_size[0] and height <= max_size[1]:
            best, best_miss = rendered, miss
        if best_miss <= 1:
            break
        scale *= factor
    return best if best_miss <= MAX_MISS else None


def _premultiply(pixels: np.ndarray, flip: bool) -> np.ndarray:
    """(h, w, 4) float32: colours times alpha in [0, 255], alpha in [0, 1].

    Interpolating premultiplied colours keeps those of transparent pixels, which mean nothing, out of the edge.
    """
    if flip:
        pixels = pixels[:, ::-1]
    alpha = pixels[..., 3:].astype(np.float32) / 255
    return np.concatenate([pixels[..., :3] * alpha, alpha], axis=2)


def _measure_rotated(alpha: np.ndarray, angle: float) -> tuple[float, float]:
    """Width and height, in pixels, of the object's tight box after a rotation in degrees."""
    points = cv2.findNonZero((alpha >= OPAQUE / 255).astype(np.uint8))
    # The corners of the hull's pixels, not their centres: a single pixel is one pixel wide.
    hull = cv2.convexHull(points)[:, 0, :].astype(np.float64)
    corners = (hull[:, None, :] + np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).reshape(-1, 2)
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    x, y = corners @ np.array([cosine, sine]), corners @ np.array([-sine, cosine])
    return float(np.ptp(x)), float(np.ptp(y))


def _render(premultiplied: np.ndarray, scale: float, look: Look) -> RenderedObject | None:
    """One rendering by a given scale, or None if nothing of the object is left."""
    height, width = premultiplied.shape[:2]
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    # Area averaging is the only one of OpenCV's filters that does not alias when it shrinks.
    layers = cv2.resize(premultiplied, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    layers = _rotate(layers, look.angle, margin=math.ceil(3 * look.softness) + 1)
    alpha = layers[..., 3]
    pixels = layers[..., :3] / np.maximum(alpha, 1e-6)[..., None] * np.array(look.gains, dtype=np.float32)
    alpha = _soften(alpha, look.softness)
    if not (alpha > 0.5).any():
        return None
    return RenderedObject(np.clip(pixels, 0, 255), alpha, find_tight_box(alpha > 0.5))


def _rotate(layers: np.ndarray, angle: float, margin: int) -> np.ndarray:
    """Rotate counter-clockwise onto a canvas that holds the whole result and a transparent margin."""
    height, width = layers.shape[:2]
    cosine, sine = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    canvas_width = math.ceil(width * cosine + height * sine) + 2 * margin
    canvas_height = math.ceil(width * sine + height * cosine) + 2 * margin
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    # A whole number of pixels, so that an object that is not rotated is not blurred either.
    matrix[0, 2] += (canvas_width - width) // 2
    matrix[1, 2] += (canvas_height - height) // 2
    return cv2.warpAffine(layers, matrix, (canvas_width, canvas_height), flags=cv2.INTER_LINEAR)


def _soften(alpha: np.ndarray, softness: float) -> np.ndarray:
    """Alpha with an edge of the given softness, (h', w') float32 in [0, 1].

    The edge is softened inwards: what lies just outside of an object's outline is its old background.
    """
    if softness == 0:
        return (alpha > 0.5).astype(np.float32)
    blurred = cv2.GaussianBlur(alpha, (0, 0), softness)
    # On a straight outline the blurred alpha is one half, which becomes nothing, and 1 only well inside.
    return np.clip(2 * blurred - 1, 0, 1)
