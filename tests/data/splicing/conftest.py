"""Objects and photos whose pixels the tests know."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from oesir_d2.data.splicing import CutOut


@pytest.fixture
def make_cutout() -> Callable[..., CutOut]:
    """``make_cutout(height, width, color)``: a lopsided object of one colour; what is transparent is garbage green."""

    def make(
        height: int = 90, width: int = 120, color: tuple[int, int, int] = (250, 20, 240), image_id: str = "donor.jpg"
    ) -> CutOut:
        y, x = np.mgrid[0:height, 0:width]
        disc = ((y - height * 0.6) / (height * 0.4)) ** 2 + ((x - width * 0.4) / (width * 0.4)) ** 2 <= 1
        tail = (x >= width * 0.4) & (abs(y - height * 0.3) <= height * 0.08)
        head = (y <= height * 0.3) & (abs(x - width * 0.3) <= width * 0.1)
        opaque = disc | tail | head
        rows, columns = np.flatnonzero(opaque.any(axis=1)), np.flatnonzero(opaque.any(axis=0))
        opaque = opaque[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        pixels = np.empty((*opaque.shape, 4), dtype=np.uint8)
        pixels[..., :3] = np.where(opaque[..., None], color, (0, 255, 0))
        pixels[..., 3] = opaque * 255
        return CutOut(pixels, image_id, (0, 0, opaque.shape[1], opaque.shape[0]))

    return make
