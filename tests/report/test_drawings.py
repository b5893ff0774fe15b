from __future__ import annotations

import itertools

import numpy as np
import pytest
from skimage.color import rgb2lab

from oesir_d2.report.drawings import (
    BLACK,
    REGION_COLORS,
    WHITE,
    LabelledBox,
    compute_display_size,
    compute_line_width,
    crop_box,
    draw_boxes,
    draw_display_photo,
    get_region_color,
    get_text_color,
)

ORANGE, SKY_BLUE = REGION_COLORS[:2]

# Machado, Oliveira and Fernandes, IEEE TVCG 2009: full colour-vision deficiencies, on linear RGB.
DEFICIENCIES = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def make_photo(width: int, height: int) -> np.ndarray:
    """A photo whose pixels are all grey but differ, and which is read-only, so that writing to it would raise."""
    grey = np.random.default_rng(0).integers(100, 156, (height, width, 1))
    pixels = np.repeat(grey, 3, axis=2).astype(np.uint8)
    pixels.flags.writeable = False
    return pixels


def find_color(pixels: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    """(H, W) bool, where a photo has exactly this colour."""
    return (pixels == np.array(color, dtype=np.uint8)).all(axis=2)


def test_border_lies_inside_the_box_and_nothing_else_changes():
    photo = make_photo(360, 240)
    drawn = draw_boxes(photo, [LabelledBox((40, 30, 200, 150), ORANGE)])
    width = compute_line_width(360, 240)
    border = np.zeros((240, 360), dtype=bool)
    border[30:150, 40:200] = True
    border[30 + width : 150 - width, 40 + width : 200 - width] = False
    np.testing.assert_array_equal(find_color(drawn, ORANGE), border)
    casing = max(1, width // 4)
    touched = np.zeros_like(border)
    touched[30:150, 40:200] = True
    touched[30 + width + casing : 150 - width - casing, 40 + width + casing : 200 - width - casing] = False
    np.testing.assert_array_equal(drawn[~touched], photo[~touched])


def test_the_result_is_a_new_array_even_without_boxes():
    photo = make_photo(20, 10).copy()
    before = photo.copy()
    drawn = draw_boxes(photo, [])
    np.testing.assert_array_equal(drawn, before)
    drawn[:] = 0
    np.testing.assert_array_equal(photo, before)


def test_line_width_and_label_scale_with_the_photo():
    small = draw_boxes(make_photo(480, 320), [LabelledBox((96, 96, 384, 256), ORANGE, "1")])
    large = draw_boxes(make_photo(1440, 960), [LabelledBox((288, 288, 1152, 768), ORANGE, "1")])
    share_small, share_large = find_color(small, ORANGE).mean(), find_color(large, ORANGE).mean()
    assert share_large == pytest.approx(share_small, rel=0.1)


def test_display_photo_is_shrunk_with_its_boxes():
    drawn = draw_display_photo(make_photo(1280, 960), [LabelledBox((400, 200, 800, 600), ORANGE)])
    assert drawn.shape == (480, 640, 3)
    rows, columns = np.nonzero(find_color(drawn, ORANGE))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (200, 100, 399, 299)


def test_display_photo_is_never_enlarged():
    photo = make_photo(50, 30)
    np.testing.assert_array_equal(draw_display_photo(photo, long_side=640), photo)


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3000), (3000, 2), (7, 5)])
def test_extreme_photos_can_be_drawn_on(width: int, height: int):
    photo = make_photo(width, height)
    boxes = [LabelledBox((0, 0, width, height), ORANGE, "whole"), LabelledBox((0, 0, 1, 1), SKY_BLUE, "12")]
    assert draw_boxes(photo, boxes).shape == photo.shape
    display_width, display_height = compute_display_size(width, height, 640)
    assert draw_display_photo(photo, boxes).shape == (display_height, display_width, 3)
    assert min(display_width, display_height) >= 1 and max(display_width, display_height) <= 640


def test_box_without_area_is_a_visible_spot():
    drawn = draw_boxes(make_photo(640, 480), [LabelledBox((100, 50, 100, 50), ORANGE)])
    width = compute_line_width(640, 480)
    expected = np.zeros((480, 640), dtype=bool)
    expected[50 : 50 + width, 100 : 100 + width] = True
    np.testing.assert_array_equal(find_color(drawn, ORANGE), expected)


def test_box_reaching_out_of_the_photo_is_cut_at_its_border():
    drawn = draw_boxes(make_photo(100, 80), [LabelledBox((-50, -20, 60, 300), ORANGE)])
    rows, columns = np.nonzero(find_color(drawn, ORANGE))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (0, 0, 59, 79)


@pytest.mark.parametrize("box", [(-40, 0, 0, 30), (0, -9, 30, -1), (100, 0, 120, 30), (0, 80, 30, 90)])
def test_box_outside_the_photo_is_left_out(box: tuple[float, ...]):
    photo = make_photo(100, 80)
    np.testing.assert_array_equal(draw_boxes(photo, [LabelledBox(box, ORANGE, "1")]), photo)


def test_labels_of_boxes_at_one_corner_do_not_hide_each_other():
    boxes = [LabelledBox((0, 0, 200, 200), color, str(i)) for i, color in enumerate(REGION_COLORS[:3])]
    drawn = draw_boxes(make_photo(300, 300), boxes)
    # The third box's border hides the others', so what is left of the first two colours are their labels.
    areas = [int(find_color(drawn, color).sum()) for color in REGION_COLORS[:3]]
    assert areas[0] > 50 and areas[1] == pytest.approx(areas[0], rel=0.5)


@pytest.mark.parametrize("box", [(0, 0, float("nan"), 1), (0, 0, float("inf"), 1), (0, 0, 1)])
def test_box_that_is_not_four_finite_numbers_is_refused(box: tuple[float, ...]):
    with pytest.raises(ValueError, match="four finite numbers"):
        LabelledBox(box, ORANGE)


@pytest.mark.parametrize(
    "pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_array_that_is_no_photo_is_refused(pixels: np.ndarray):
    with pytest.raises(ValueError, match="uint8 RGB"):
        draw_boxes(pixels, [])


def test_display_size_below_one_pixel_is_refused():
    with pytest.raises(ValueError, match="display size 0"):
        draw_display_photo(make_photo(4, 4), long_side=0)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((2, 3, 6, 5), (slice(3, 5), slice(2, 6))),
        ((1.5, 0.5, 2.5, 1.5), (slice(0, 2), slice(1, 3))),
        ((-5, -5, 3, 3), (slice(0, 3), slice(0, 3))),
        ((4, 4, 4, 4), (slice(4, 5), slice(4, 5))),
        ((50, 50, 60, 60), (slice(7, 8), slice(9, 10))),
    ],
)
def test_crop_is_the_part_within_the_box(box: tuple[float, ...], expected: tuple[slice, slice]):
    photo = make_photo(10, 8)
    np.testing.assert_array_equal(crop_box(photo, box), photo[expected])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_region_colors_differ_for_readers_with_color_vision_deficiencies(deficiency: str):
    srgb = np.array(REGION_COLORS) / 255
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(DEFICIENCIES[deficiency]).T, 0, 1)
    seen_srgb = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    lab = rgb2lab(seen_srgb[None])[0]
    # About 2.3 is a just noticeable difference in CIELAB; plain red and green come to less than twice that.
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 10


def test_colors_come_again_after_the_last():
    assert get_region_color(0) == get_region_color(len(REGION_COLORS))
    assert len({get_region_color(i) for i in range(len(REGION_COLORS))}) == len(REGION_COLORS)


@pytest.mark.parametrize("ground", [*REGION_COLORS, BLACK, WHITE])
def test_text_on_a_label_has_the_contrast_that_wcag_asks_for(ground: tuple[int, int, int]):
    def luminance(color: tuple[int, int, int]) -> float:
        srgb = np.array(color) / 255
        return float(
            np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4) @ [0.2126, 0.7152, 0.0722]
        )

    dark, bright = sorted((luminance(ground), luminance(get_text_color(ground))))
    assert (bright + 0.05) / (dark + 0.05) >= 4.5
