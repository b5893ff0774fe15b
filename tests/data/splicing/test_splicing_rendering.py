"""Rendering of an object: mirrored, rotated, scaled, tinted, softened."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pytest

from oesir_d2.data.splicing import CutOut
from oesir_d2.data.splicing.rendering import Look, RenderedObject, render_object

ANYTHING_FITS = (10_000, 10_000)


def crop(rendered: RenderedObject) -> np.ndarray:
    """The mask within its box."""
    x0, y0, x1, y1 = rendered.box
    return rendered.mask[y0:y1, x0:x1]


def test_an_unchanged_object_keeps_every_pixel(make_cutout: Callable[..., CutOut]) -> None:
    cutout = make_cutout()
    rendered = render_object(cutout, Look(long_side=max(cutout.pixels.shape[:2])), ANYTHING_FITS)

    assert rendered is not None
    opaque = cutout.pixels[..., 3] == 255
    np.testing.assert_array_equal(crop(rendered), opaque)
    x0, y0, x1, y1 = rendered.box
    np.testing.assert_array_equal(rendered.pixels[y0:y1, x0:x1][opaque], cutout.pixels[..., :3][opaque])


def test_a_flip_mirrors_left_and_right(make_cutout: Callable[..., CutOut]) -> None:
    cutout = make_cutout()
    rendered = render_object(cutout, Look(long_side=max(cutout.pixels.shape[:2]), flip=True), ANYTHING_FITS)

    assert rendered is not None
    np.testing.assert_array_equal(crop(rendered), cutout.pixels[:, ::-1, 3] == 255)


@pytest.mark.parametrize("quarter_turns", [-1, 1, 2])
def test_rotation_is_counter_clockwise(make_cutout: Callable[..., CutOut], quarter_turns: int) -> None:
    cutout = make_cutout()
    look = Look(long_side=max(cutout.pixels.shape[:2]), angle=90 * quarter_turns)
    rendered = render_object(cutout, look, ANYTHING_FITS)

    assert rendered is not None
    expected = np.rot90(cutout.pixels[..., 3] == 255, quarter_turns)
    height, width = np.minimum(crop(rendered).shape, expected.shape)
    # A canvas of odd size puts the turned pixels half between others, which moves the outline by up to a pixel.
    agreement = np.mean(crop(rendered)[:height, :width] == expected[:height, :width])
    assert agreement > 0.96
    assert np.mean(crop(rendered)[:height, :width] == np.rot90(expected, 2)[:height, :width]) < 0.8


@pytest.mark.parametrize("softness", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("long_side", [31.5, 64.0, 250.0])
@pytest.mark.parametrize("angle", [0.0, 11.0, -40.0])
def test_the_longer_side_is_met(
    make_cutout: Callable[..., CutOut], long_side: float, angle: float, softness: float
) -> None:
    rendered = render_object(make_cutout(), Look(long_side, angle, softness=softness), ANYTHING_FITS)

    assert rendered is not None
    rows, columns = np.nonzero(rendered.alpha > 0.5)
    assert rendered.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    assert abs(max(np.ptp(rows) + 1, np.ptp(columns) + 1) - long_side) <= 1


def test_a_larger_object_is_made_to_fit(make_cutout: Callable[..., CutOut]) -> None:
    rendered = render_object(make_cutout(), Look(long_side=400, softness=1), max_size=(500, 40))

    assert rendered is not None
    assert 38 <= rendered.size[1] <= 40
    assert rendered.size[0] < 60


@pytest.mark.parametrize("long_side", [50.0, 170.0])
def test_colours_of_transparent_pixels_stay_out(make_cutout: Callable[..., CutOut], long_side: float) -> None:
    cutout = make_cutout(color=(200, 40, 90))
    rendered = render_object(cutout, Look(long_side, angle=7, softness=1.5), ANYTHING_FITS)

    assert rendered is not None
    shown = rendered.pixels[rendered.alpha > 0]
    np.testing.assert_allclose(shown, np.broadcast_to((200, 40, 90), shown.shape), atol=0.5)


def test_gains_tint_without_overflow(make_cutout: Callable[..., CutOut]) -> None:
    cutout = make_cutout(color=(200, 100, 50))
    rendered = render_object(cutout, Look(60, gains=(1.5, 1.1, 0.5)), ANYTHING_FITS)

    assert rendered is not None
    shown = rendered.pixels[rendered.mask]
    np.testing.assert_allclose(shown, np.broadcast_to((255, 110, 25), shown.shape), atol=0.01)


def test_softness_widens_the_edge_inwards(make_cutout: Callable[..., CutOut]) -> None:
    square = CutOut(np.full((100, 100, 4), 255, dtype=np.uint8), "square.png", (0, 0, 100, 100))

    def edge_width(softness: float) -> int:
        rendered = render_object(square, Look(100, softness=softness), ANYTHING_FITS)
        assert rendered is not None
        row = rendered.alpha[len(rendered.alpha) // 2]
        assert np.count_nonzero(row > 0) <= 2 * np.count_nonzero(row > 0.5) - np.count_nonzero(row == 1) + 2
        return int(np.count_nonzero((row > 0.01) & (row < 0.99)))

    assert edge_width(0) == 0
    assert 0 < edge_width(1) < edge_width(3)


def test_a_thread_softened_away_is_no_object() -> None:
    thread = CutOut(np.full((1, 300, 4), 255, dtype=np.uint8), "thread.png", (0, 0, 300, 1))

    assert render_object(thread, Look(100, softness=3), ANYTHING_FITS) is None


def test_shrinking_averages_instead_of_skipping_pixels() -> None:
    stripes = np.zeros((256, 256, 4), dtype=np.uint8)
    stripes[:, ::2, :3] = 255
    stripes[..., 3] = 255
    rendered = render_object(CutOut(stripes, "stripes.png", (0, 0, 256, 256)), Look(64), ANYTHING_FITS)

    assert rendered is not None
    expected = cv2.resize(stripes[..., :3], (64, 64), interpolation=cv2.INTER_AREA).mean()
    inner = crop(rendered).shape[0] // 2
    x0, y0 = rendered.box[:2]
    assert rendered.pixels[y0 + inner, x0 + 2 : x0 + 60].mean() == pytest.approx(expected, abs=1)
    assert rendered.pixels[y0 + inner, x0 + 2 : x0 + 60].std() < 1
