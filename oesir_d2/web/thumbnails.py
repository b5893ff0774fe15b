"""The pictures of an answer: photos at display size with the regions that match."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from PIL import Image

from oesir_d2.data.images import DecodedImage
from oesir_d2.index.results import SearchResult
from oesir_d2.report import LabelledBox, draw_display_photo
from oesir_d2.report.linking import LinkedMatch, is_whole_photo
from oesir_d2.report.photos import load_photo

THUMBNAIL_LONG_SIDE = 360
JPEG_QUALITY = 82


def draw_result(result: SearchResult, matches: Sequence[LinkedMatch]) -> bytes:
    """A result's thumbnail; empty if its file is not readable any more."""
    image = load_photo(result.path).image
    if image is None:
        return b""
    boxes = [LabelledBox(m.database_box, m.region.color, str(m.region.number)) for m in matches]
    return draw_picture(image, boxes, THUMBNAIL_LONG_SIDE)


def draw_picture(image: DecodedImage, boxes: Sequence[LabelledBox], long_side: int) -> bytes:
    """A photo with boxes, given in pixels of the original, as a JPEG file. The whole photo as a box is not drawn."""
    scale_x, scale_y = image.pixels.shape[1] / image.width, image.pixels.shape[0] / image.height
    parts = [
        LabelledBox((b.box[0] * scale_x, b.box[1] * scale_y, b.box[2] * scale_x, b.box[3] * scale_y), b.color, b.label)
        for b in boxes
        if not is_whole_photo(b.box, image.width, image.height)
    ]
    return encode_jpeg(draw_display_photo(image.pixels, parts, long_side))


def encode_jpeg(pixels: np.ndarray) -> bytes:
    """A photo, (H, W, 3) uint8 RGB, as a JPEG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="JPEG", quality=JPEG_QUALITY, subsampling=0)
    return buffer.getvalue()


def encode_png(pixels: np.ndarray) -> bytes:
    """A mask, (H, W) uint8, as a PNG file."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, format="PNG")
    return buffer.getvalue()
