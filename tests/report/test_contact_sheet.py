from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from oesir_d2.report.contact_sheet import (
    CAPTION_SIZE,
    GAP,
    CaptionedPhoto,
    draw_contact_sheet,
    shorten_caption,
    write_contact_sheet,
)
from oesir_d2.report.drawings import REGION_COLORS, get_font


def make_photo(color: tuple[int, int, int], width: int = 64, height: int = 64) -> np.ndarray:
    pixels = np.full((height, width, 3), color, dtype=np.uint8)
    pixels.flags.writeable = False
    return pixels


def test_photos_stand_in_a_grid_row_by_row():
    photos = [CaptionedPhoto(make_photo(color), "a\nb") for color in REGION_COLORS[:5]]
    sheet = draw_contact_sheet(photos, columns=3, cell_side=64)
    assert sheet.shape[1] == GAP + 3 * (64 + GAP)
    tops = []
    for index, color in enumerate(REGION_COLORS[:5]):
        rows, columns = np.nonzero((sheet == color).all(axis=2))
        assert len(rows) == 64 * 64
        assert columns.min() == GAP + (index % 3) * (64 + GAP)
        tops.append(rows.min())
    assert tops[0] == tops[1] == tops[2] == GAP and tops[3] == tops[4]
    # Between two rows lie a photo, two lines of caption and a gap.
    assert tops[3] - tops[0] >= 64 + 2 * CAPTION_SIZE + GAP


def test_smaller_photos_are_centred_and_larger_ones_shrunk():
    orange, blue = REGION_COLORS[:2]
    sheet = draw_contact_sheet(
        [CaptionedPhoto(make_photo(orange, 20, 10), ""), CaptionedPhoto(make_photo(blue, 640, 320), "")], cell_side=64
    )
    rows, columns = np.nonzero((sheet == orange).all(axis=2))
    assert (columns.min(), columns.max() + 1) == (GAP + 22, GAP + 42)
    assert (rows.min(), rows.max() + 1) == (GAP + 27, GAP + 37)
    rows, columns = np.nonzero((sheet == blue).all(axis=2))
    assert (np.ptp(columns) + 1, np.ptp(rows) + 1) == (64, 32)


def test_captions_are_written_and_a_missing_photo_is_crossed_out():
    plain = draw_contact_sheet([CaptionedPhoto(make_photo((0, 200, 0)), " ")], cell_side=64)
    captioned = draw_contact_sheet([CaptionedPhoto(make_photo((0, 200, 0)), "é")], cell_side=64)
    np.testing.assert_array_equal(captioned[: GAP + 64], plain[: GAP + 64])
    assert (captioned[GAP + 64 :] != plain[GAP + 64 :]).any()
    missing = draw_contact_sheet([CaptionedPhoto(None, "gone.jpg")], cell_side=64)
    cell = missing[GAP : GAP + 64, GAP : GAP + 64]
    assert len({tuple(cell[i, i]) for i in range(64)}) == 1 and tuple(cell[0, 0]) != tuple(cell[0, 32])


@pytest.mark.parametrize("caption", ["x" * 300, "日本 \udcff \x07", "", "\n\n"])
def test_odd_captions_keep_to_their_cell(caption: str):
    sheet = draw_contact_sheet([CaptionedPhoto(make_photo((0, 200, 0)), caption)], cell_side=64)
    assert sheet.shape[1] == 64 + 2 * GAP
    assert (sheet[:, -GAP:] == sheet[0, 0]).all()


@pytest.mark.parametrize(("width", "height"), [(1, 1), (2, 3000)])
def test_extreme_photos_have_a_cell_too(width: int, height: int):
    sheet = draw_contact_sheet([CaptionedPhoto(make_photo((0, 200, 0), width, height), "thin")], cell_side=64)
    assert (sheet == (0, 200, 0)).all(axis=2).sum() == min(height, 64)


def test_shortened_caption_fits_and_keeps_both_ends():
    font = get_font(CAPTION_SIZE)
    name = "a_long_name_of_a_photo_000123.jpg"
    shortened = shorten_caption(name, font, 120)
    head, tail = shortened.split("…")
    assert name.startswith(head) and name.endswith(tail) and head and tail
    assert font.getlength(shortened) <= 120
    assert shorten_caption("short", font, 120) == "short"
    assert shorten_caption(name, font, 1) == "…"


def test_written_sheet_is_the_drawn_one(tmp_path: Path):
    photos = [CaptionedPhoto(make_photo((0, 200, 0)), "one")]
    path = tmp_path / "new folder" / "sheet.png"
    write_contact_sheet(path, photos, cell_side=64)
    np.testing.assert_array_equal(np.array(Image.open(path)), draw_contact_sheet(photos, cell_side=64))
    assert list(path.parent.iterdir()) == [path]


def test_bad_requests_are_refused(tmp_path: Path):
    photos = [CaptionedPhoto(make_photo((0, 200, 0)), "one")]
    with pytest.raises(ValueError, match="got 0"):
        draw_contact_sheet([])
    with pytest.raises(ValueError, match="0 columns"):
        draw_contact_sheet(photos, columns=0)
    with pytest.raises(ValueError, match="cell side 3"):
        draw_contact_sheet(photos, cell_side=3)
    with pytest.raises(ValueError, match="sheet.jpg"):
        write_contact_sheet(tmp_path / "sheet.jpg", photos)
