"""Random regions of photos: inside the photo, of the promised sizes, in one piece, and never twice the same."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from oesir_d2.data.splicing.blobs import MAX_ASPECT, MIN_SIDE, SIDES, draw_blob


def measure(mask: np.ndarray) -> tuple[int, int]:
    """Width and height of the box around a mask."""
    rows, columns = np.nonzero(mask)
    return int(np.ptp(columns)) + 1, int(np.ptp(rows)) + 1


@pytest.mark.parametrize(("height", "width"), [(480, 640), (640, 240), (100, 100)])
def test_regions_have_the_sizes_that_are_promised(height: int, width: int, rng: np.random.Generator) -> None:
    for _ in range(60):
        mask = draw_blob(height, width, rng)
        assert mask.shape == (height, width) and mask.dtype == np.uint8
        assert set(np.unique(mask)) == {0, 255}
        sides = measure(mask)
        # The box may be cut to the photo.
        assert min(MIN_SIDE, height, width) - 1 <= min(sides)
        assert max(sides) <= max(MIN_SIDE, round(SIDES[1] * max(height, width)))
        is_cut = sides[0] == width or sides[1] == height
        assert is_cut or max(sides) >= round(SIDES[0] * max(height, width)) - 1
        assert is_cut or max(sides) / min(sides) <= MAX_ASPECT * 1.1


def test_a_region_is_one_piece_with_a_smooth_outline(rng: np.random.Generator) -> None:
    for _ in range(30):
        mask = draw_blob(480, 640, rng)
        assert cv2.connectedComponents(mask)[0] == 2
        width, height = measure(mask)
        # An ellipse fills pi / 4 of its box; a frayed outline would leave most of it empty.
        assert 0.3 < np.count_nonzero(mask) / (width * height) < 1
        opened = cv2.morphologyEx(mask, cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
        assert np.count_nonzero(opened) > 0.98 * np.count_nonzero(mask)


def test_regions_differ_and_only_the_generator_decides(rng: np.random.Generator) -> None:
    masks = [draw_blob(120, 160, rng) for _ in range(20)]
    assert len({mask.tobytes() for mask in masks}) == 20
    again = draw_blob(120, 160, np.random.default_rng(0))
    assert np.array_equal(again, draw_blob(120, 160, np.random.default_rng(0)))


def test_a_tiny_photo_has_a_region_too(rng: np.random.Generator) -> None:
    for _ in range(20):
        assert draw_blob(8, 12, rng).any()
