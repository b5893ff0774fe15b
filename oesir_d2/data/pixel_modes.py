"""Any of Pillow's pixel modes as 8-bit RGB: palettes, transparency, CMYK, 16-bit, 32-bit and float images.

Shape shorthand: an image of H rows and W columns. Pixels are converted in strips of rows, so that the memory needed
beside the result does not grow with the image.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

CHANNEL_ORDERS = {"RGB": (0, 1, 2), "BGR": (2, 1, 0)}

_STRIP_PIXELS = 1 << 20
# Numbers of the TIFF tags that say how a sample is stored, and the value of the second one for unsigned integers.
_TIFF_BITS_PER_SAMPLE, _TIFF_SAMPLE_FORMAT, _TIFF_UNSIGNED = 258, 339, 1
# The brightest value that images of a mode customarily use; the first that holds all pixels is taken as white. PGM
# files of 16 bits come in mode I; float images hold fractions of white, 8-bit or 16-bit values.
_CUSTOMARY_WHITES = {"I": (65535,), "F": (1, 255, 65535)}


def convert_to_uint8(image: Image.Image, channels: str = "RGB") -> np.ndarray:
    """The pixels of a decoded image of any mode.

    Transparent images are composited on white. 16-bit images are divided by 256, so that 65535 is white whatever the
    brightest pixel is. 32-bit and float images take the smallest customary white (1, 255 or 65535) that holds all of
    their values; others are stretched from their lowest to their highest finite value. Colour profiles are not applied.

    Args:
        image: a decoded image; it is not changed.
        channels: "RGB" or "BGR".

    Returns:
        (H, W, 3) uint8, contiguous.

    Raises:
        ValueError: if the image's mode has no conversion to RGB, or a float image has no finite pixel.
    """
    convert = _choose_conversion(image)
    order = list(CHANNEL_ORDERS[channels])
    pixels = np.empty((image.height, image.width, 3), dtype=np.uint8)
    top = 0
    for strip in _iterate_strips(image):
        rgb = np.broadcast_to(convert(strip), (strip.height, strip.width, 3))
        pixels[top : top + strip.height] = rgb[:, :, order]
        top += strip.height
    return pixels


def _iterate_strips(image: Image.Image) -> Iterator[Image.Image]:
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        yield image.crop((0, top, image.width, min(top + rows, image.height)))


def _choose_conversion(image: Image.Image) -> Callable[[Image.Image], np.ndarray]:
    """The function that makes a strip of the image (H, W, 3) or, for grey ones, (H, W, 1) uint8."""
    if image.mode.startswith("I;16"):
        # TIFF files of 12 bits come in this mode, too.
        bits = min(16, _read_tiff_tag(image, _TIFF_BITS_PER_SAMPLE, default=16))
        return lambda strip: (np.asarray(strip)[:, :, None] >> (bits - 8)).astype(np.uint8)
    if image.mode in _CUSTOMARY_WHITES:
        # Pillow stores unsigned 32-bit samples in its signed mode I, where the upper half would be negative.
        unsigned = image.mode == "I" and _read_tiff_tag(image, _TIFF_SAMPLE_FORMAT, default=0) == _TIFF_UNSIGNED
        dtype = np.dtype(np.uint32) if unsigned else np.dtype(np.int32 if image.mode == "I" else np.float32)
        low, high = _find_value_range(image, dtype)
        return lambda strip: _stretch(np.asarray(strip).view(dtype), low, high)[:, :, None]
    if image.has_transparency_data:
        return _composite_on_white
    return lambda strip: np.asarray(strip.convert("RGB"))


def _composite_on_white(strip: Image.Image) -> np.ndarray:
    white = Image.new("RGBA", strip.size, "white")
    return np.asarray(Image.alpha_composite(white, strip.convert("RGBA")).convert("RGB"))


def _find_value_range(image: Image.Image, dtype: np.dtype) -> tuple[float, float]:
    """The values of an I or F image that become 0 and 255."""
    low, high = np.inf, -np.inf
    for strip in _iterate_strips(image):
        values = np.asarray(strip).view(dtype)
        finite = values[np.isfinite(values)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        raise ValueError("no pixel has a finite value")
    if low >= 0:
        for white in _CUSTOMARY_WHITES[image.mode]:
            if high <= white:
                return 0.0, float(white)
    return low, high


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """The values as uint8, ``low`` becoming 0 and ``high`` 255. NaN becomes 0."""
    span = (high - low) or 1.0
    values = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
    return np.rint((values - low) * (255.0 / span)).astype(np.uint8)


def _read_tiff_tag(image: Image.Image, tag: int, default: int) -> int:
    """The first value of a TIFF tag; the default for files of other formats and for a missing tag."""
    value = getattr(image, "tag_v2", {}).get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
